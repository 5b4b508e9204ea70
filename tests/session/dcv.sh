#!/bin/sh
# Stands in for an agent's `dcv`: keeps a file per session and answers as the real one does, in JSON and on stderr.
# Files beside them change that: `fails-list` and `fails` (the message, to list and to create), `dies` (a desktop that
# doesn't start), `race` (a session of that owner's comes first), `brief` (an empty list is no output). Each call is
# written to `calls`, word by word.
set -eu
here=$(dirname "$0")
state=$here/../state
for word; do printf '<%s>' "$word"; done >>"$state/calls"
echo >>"$state/calls"

failed() {
    echo "$1" >&2
    exit 1
}

session() {
    printf '{"id": "%s", "owner": "%s", "name": "%s", "num-of-connections": 0, ' "$3" "$2" "$3" >"$state/$3.json"
    printf '"creation-time": "2024-01-01T00:00:00Z", "licenses": [], "type": "%s"}\n' "$1" >>"$state/$3.json"
}

[ "$1" != list-sessions ] || ! [ -e "$state/fails-list" ] || failed "$(cat "$state/fails-list")"
case $1 in
list-sessions)
    [ "$*" = "list-sessions --json" ] || failed "Unknown option"
    separator=
    [ -e "$state/brief" ] && [ -z "$(find "$state" -name '*.json')" ] && exit
    echo '['
    for file in "$state"/*.json; do
        [ -e "$file" ] || continue
        printf '%s' "$separator"
        cat "$file"
        separator=,
    done
    echo ']'
    ;;
describe-session)
    [ "$#" = 3 ] && [ "$3" = --json ] || failed "Unknown option"
    [ -e "$state/$2.json" ] || failed "Could not find session '$2'"
    cat "$state/$2.json"
    ;;
create-session)
    shift
    type=virtual owner=$(id -un)
    while [ "$#" -gt 1 ]; do
        case $1 in
        --type=*) type=${1#--type=} ;;
        --owner) owner=$2 && shift ;;
        --user) shift ;;
        *) failed "Unknown option $1" ;;
        esac
        shift
    done
    [ ! -e "$state/fails" ] || failed "$(cat "$state/fails")"
    [ ! -e "$state/race" ] || session "$type" "$(cat "$state/race")" "$1"
    [ ! -e "$state/$1.json" ] || failed "Could not create session. Session '$1' already exists."
    [ -e "$state/dies" ] || session "$type" "$owner" "$1"
    ;;
*) failed "Unknown command" ;;
esac
