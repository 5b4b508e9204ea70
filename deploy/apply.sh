#!/bin/sh
# The far side of deploy.sh, which uploads and starts it as `apply.sh DIRECTORY HOST HANDOVER PATIENCE HEALTH`, as root.
# Once something is changed it ends with the new configuration serving, or with what was there before.
set -eu
# Whoever started it may go: what was begun is brought to an end.
trap '' HUP INT PIPE TERM

directory=$1 host=$2 handover=$3 patience=$4 health=$5
config=/etc/dcv-splice/dcv-splice.toml
new=$directory/dcv-splice.toml
package=$directory/dcv-splice.deb
# What is put back.
before=$directory/before.toml
# Where packages are kept that were deployed, to go back to.
kept=/var/cache/dcv-splice
program=dcv-splice
ran='' previous='' changed='' installed='' old_health=''

main() {
    trap leave EXIT
    look
    check
    back_up
    changed=yes
    install_package
    apply
    healthy "$health" || fail "no good answer from $health in $patience s"
    changed=
    keep_package
    tell
}

# What is there, and whether this can work at all.
look() {
    [ "$(id -u)" = 0 ] || fail "needs root over there: --user root, or --sudo"
    command -v curl >/dev/null || command -v wget >/dev/null || fail "there is neither curl nor wget to ask /health with"
    exec 9>/run/dcv-splice-deploy.lock
    flock -n 9 || fail "another deploy is at work there"
    previous=$(dpkg-query --show --showformat='${db:Status-Status} ${Version}' dcv-splice 2>/dev/null) || previous=
    case $previous in
    'installed '*) previous=${previous#installed } ;;
    *) previous= ;;
    esac
    if dcv-splice status >/dev/null 2>&1; then
        ran=yes
        # Only what answers now is asked again after a rollback: a listener may want certificates of clients.
        old_health=$(dcv-splice check --config "$config" 2>/dev/null | health_url)
        ask "$old_health" || old_health=
    elif ! [ -d /run/systemd/system ]; then
        fail "dcv-splice does not run there, and no systemd to start it by: start it first"
    fi
}

# By the program that will serve, as the account that will: a key that only root can read is found now.
check() {
    if [ -f "$package" ]; then
        dpkg-deb -x "$package" "$directory/package" || fail "this is no package"
        program=$directory/package/usr/bin/dcv-splice
    fi
    command -v "$program" >/dev/null || fail "dcv-splice is not installed there: give a --package"
    chmod 0640 "$new"
    resolved=$(as_service "$program" check --config "$new") || fail "the configuration is refused: nothing was changed"
    listens=$(printf '%s\n' "$resolved" | health_url)
    health=${health:-$listens}
}

as_service() {
    if id dcv-splice >/dev/null 2>&1; then
        chgrp -R dcv-splice "$directory"
        chmod -R g+rX "$directory"
        setpriv --reuid=dcv-splice --regid=dcv-splice --init-groups "$@"
    else
        "$@"
    fi
}

# Reads what `check` prints: the first address that HTTPS is accepted at, else plain HTTP, as seen from here.
health_url() {
    sed -n -e 's/^listen = \["\([^"]*\)".*/https:\/\/\1\/health/p' \
        -e 's/^listen-plain = \["\([^"]*\)".*/http:\/\/\1\/health/p' |
        sed -e 's/\/\/0\.0\.0\.0:/\/\/127.0.0.1:/' -e 's/\/\/\[::\]:/\/\/[::1]:/' | sort -r | head -n 1
}

# Beside the configuration, for people, and where a rollback takes it from; no file is ever written over.
back_up() {
    [ -e "$config" ] || return 0
    backup=$config.$(date -u +%Y%m%dT%H%M%SZ)
    ln "$config" "$backup" || fail "the configuration can't be backed up: nothing was changed"
    cp -p "$config" "$before"
    say "backed up: $backup"
}

install_package() {
    [ -f "$package" ] || return 0
    # The configuration that is there is not asked about; the package's own comes beside it.
    installed=yes
    dpkg --force-confold --install "$package" >&2 || fail "the package can't be installed"
    # By its process the old program would go on; the new one reads the new configuration.
    handover=upgrade
    if ! [ -f "$before" ]; then
        cp -p "$config" "$before"
    fi
}

apply() {
    put "$new"
    hand_over "$handover"
}

# All or nothing, with the owner and mode of what was there.
put() {
    deployed=$config.deployed
    if [ -f "$before" ]; then
        cp -p "$before" "$deployed" || fail "$deployed can't be written"
    else
        install -m 0640 -g dcv-splice /dev/null "$deployed" || fail "$deployed can't be written"
    fi
    cat "$1" >"$deployed" || fail "$deployed can't be written"
    mv -f "$deployed" "$config" || fail "$config can't be replaced"
}

hand_over() {
    if dcv-splice status >/dev/null 2>&1; then
        dcv-splice "$1" || fail "it does not go by the new configuration (above is why)"
    else
        systemctl restart dcv-splice.service || fail "it does not start: journalctl -u dcv-splice"
    fi
}

healthy() {
    deadline=$(($(date +%s) + patience))
    until ask "$1"; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

# Its certificate may be anybody's: this asks whether it serves, not who it is.
ask() {
    if command -v curl >/dev/null; then
        answer=$(curl --silent --insecure --noproxy '*' --max-time 5 "$1") || return 1
    else
        answer=$(wget --quiet --no-check-certificate --no-proxy --timeout=5 --tries=1 -O - "$1") || return 1
    fi
    [ "$answer" = "DCV Proxy OK" ]
}

keep_package() {
    [ -f "$package" ] || return 0
    # Only a later rollback wants it, and no earlier one.
    if ! { rm -rf "$kept" && mkdir -p "$kept" && cp "$package" "$kept/dcv-splice_$(version).deb"; }; then
        say "the package can't be kept in $kept: a later deploy can't go back to it"
    fi
}

version() {
    dpkg-query --show --showformat='${Version}' dcv-splice
}

tell() {
    address=${listens%/health}
    case $host in *:*) host="[$host]" ;; esac
    url=${listens%%://*}://$host:${address##*:}
    cat <<END
dcv-splice $(version) serves. Try:
  curl --insecure $url/health
  ssh $host dcv-splice status
In a browser, with an agent's address in place of AGENT:
  $url/AGENT/
END
    printf '%s\n' "$resolved" | sed -n "s|^default-agent = \"\\([^\"]*\\)\".*|  $url/\\1/|p"
}

# The one way out. Where nothing was changed there is nothing to put back.
leave() {
    status=$?
    trap - EXIT
    if [ -n "$changed" ]; then
        if (roll_back); then
            status=1
        else
            say "ROLLBACK FAILED: see to $config and dcv-splice on $host"
            status=3
        fi
    fi
    rm -rf -- "$directory"
    exit "$status"
}

roll_back() {
    say "rolling back"
    if [ -f "$before" ]; then
        put "$before"
    else
        rm -f "$config"
    fi
    if [ -n "$installed" ]; then
        handover=upgrade
        reinstall
    fi
    if [ -n "$ran" ]; then
        hand_over "$handover"
        [ -z "$old_health" ] || healthy "$old_health" || fail "no good answer from $old_health in $patience s"
        say "rolled back: the configuration from before is served"
    else
        systemctl stop dcv-splice.service || true
        say "rolled back: it does not run, as before"
    fi
}

reinstall() {
    for old in "$kept/dcv-splice_$previous.deb" "/var/cache/apt/archives/dcv-splice_${previous}_"*.deb; do
        if [ -n "$previous" ] && [ -f "$old" ]; then
            dpkg --force-confold --force-downgrade --install "$old" >&2 || fail "$old can't be installed"
            return
        fi
    done
    say "the program stays at $(version): there is no package of ${previous:-an earlier one} there to go back to"
}

fail() {
    say "$*"
    exit 1
}

# Nobody may be there to hear it.
say() {
    echo "deploy: $*" >&2 || true
}

main
