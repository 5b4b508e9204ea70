#!/bin/sh
# Brings a configuration, and a package if one is given, to a host over SSH and has it served there without ending a
# session. Nothing is changed before the new program accepts the new configuration; whatever fails later is rolled
# back. What is done over there is in apply.sh, beside this file.
set -eu

patience=30
ssh_port=22
user=root
host='' key='' config='' package='' known_hosts='' sudo='' health='' handover=reload directory=''

usage() {
    cat <<'END'
deploy.sh --host H --config F [--ssh-port P] [--key K] [--user U] [--package DEB] [--known-hosts FILE] [--sudo]
          [--upgrade] [--health URL] [--patience S]

  --host H             the name or address that SSH and browsers reach the proxy by
  --config F           becomes /etc/dcv-splice/dcv-splice.toml there
  --ssh-port P         22 without it
  --key K              the private key; without it, those that ssh finds by itself
  --user U             root without it; any other needs --sudo
  --package DEB        is installed, or upgraded to, before the configuration is applied
  --known-hosts FILE   the host's key is in there and nowhere else
  --sudo               become root by sudo there, without a password
  --upgrade            start the program anew and hand over, for settings that a reload can't change, such as listen
  --health URL         what is asked over there to see whether it serves; without it, /health of the first listener
  --patience S         how long it may take until that answers; 30 without it

Exits with 0 if it serves; 1 if not, and what served before does so again; 2 if this can't be meant; 3 if it could
not be rolled back.
END
}

main() {
    read_arguments "$@"
    look_at_arguments
    trap leave EXIT
    trap 'exit 130' HUP INT TERM
    connect
    upload "$here/apply.sh" apply.sh
    upload "$config" dcv-splice.toml
    if [ -n "$package" ]; then
        upload "$package" dcv-splice.deb
    fi
    begin
}

# Whatever becomes of this side, the far side comes to its end, and clears its directory away.
begin() {
    begun=$directory directory='' status=0
    command="sh '$begun/apply.sh' '$begun' '$host' '$handover' '$patience' '$health'"
    remote "${sudo:+sudo -n }$command" </dev/null || status=$?
    [ "$status" != 255 ] || fail "the connection to $host broke; there it is brought to its end, or rolled back"
    # It has not begun where sudo wants a password.
    directory=$begun
    exit "$status"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        option=$1
        shift
        case $option in
        --help | -h)
            usage
            exit 0
            ;;
        --sudo)
            sudo=yes
            continue
            ;;
        --upgrade)
            handover=upgrade
            continue
            ;;
        esac
        [ $# -gt 0 ] || misuse "$option: there is no such option, or its value is missing"
        case $option in
        --host) host=$1 ;;
        --config) config=$1 ;;
        --ssh-port) ssh_port=$1 ;;
        --key) key=$1 ;;
        --user) user=$1 ;;
        --package) package=$1 ;;
        --known-hosts) known_hosts=$1 ;;
        --health) health=$1 ;;
        --patience) patience=$1 ;;
        *) misuse "$option: there is no such option" ;;
        esac
        shift
    done
}

# What reaches a shell over there is of these characters alone.
look_at_arguments() {
    plain --host "$host" 'A-Za-z0-9.:_-'
    plain --user "$user" 'A-Za-z0-9._-'
    plain --ssh-port "$ssh_port" '0-9'
    plain --patience "$patience" '0-9'
    [ -z "$health" ] || plain --health "$health" "]A-Za-z0-9.:/?=&_%[-"
    readable --config "$config"
    [ -z "$package" ] || readable --package "$package"
    [ -z "$key" ] || readable --key "$key"
    [ -z "$known_hosts" ] || readable --known-hosts "$known_hosts"
    here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
}

plain() {
    case $2 in
    '' | -* | *[!$3]*) misuse "$1 '$2': give a value, without other characters than $3" ;;
    esac
}

readable() {
    if ! [ -f "$2" ] || ! [ -r "$2" ]; then
        misuse "$1 '$2': there is no such file, or it can't be read"
    fi
}

connect() {
    directory=$(remote 'umask 077 && mktemp -d /tmp/dcv-splice-deploy.XXXXXXXX' </dev/null) || {
        directory=
        fail "no SSH to $user@$host, port $ssh_port (above is why). Try: ssh -p $ssh_port $user@$host true"
    }
    case $directory in
    /tmp/dcv-splice-deploy.????????) ;;
    *)
        said=$directory
        directory=
        fail "$host prints '$said' where a command's output is wanted: is there an 'echo' in a shell's start-up file?"
        ;;
    esac
}

upload() {
    remote "cat >'$directory/$2'" <"$1" || fail "$1 can't be brought to $host"
}

# No question is ever asked: a script may have nobody to answer. ssh expands % in names of files.
remote() {
    ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -p "$ssh_port" \
        ${key:+-o IdentitiesOnly=yes -i "$(escaped "$key")"} \
        ${known_hosts:+-o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=none} \
        ${known_hosts:+-o "UserKnownHostsFile=\"$(escaped "$known_hosts")\""} \
        -l "$user" -- "$host" "$@"
}

escaped() {
    printf '%s\n' "$1" | sed 's/%/%%/g'
}

# shellcheck disable=SC2317 # The trap runs it.
leave() {
    if [ -n "$directory" ]; then
        remote "rm -rf -- '$directory'" </dev/null || echo "deploy: $directory stays on $host" >&2
    fi
}

misuse() {
    echo "deploy: $*; see --help" >&2
    exit 2
}

fail() {
    echo "deploy: $*" >&2
    exit 1
}

main "$@"
