# A PostgreSQL server for the ledger's tests: Debian's, on loopback, in a folder that goes with the run. Sourced by run.

server_programs() {
    for folder in /usr/lib/postgresql/*/bin; do
        [ -x "$folder/initdb" ] && echo "$folder"
    done | sort -V | tail -1
}

# A server refuses to run as root.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

# Start a server and set LEDGER_POSTGRES; fail where none can be had.
start_postgres() {
    if [ -z "$(server_programs)" ] && [ "$(id -u)" = 0 ]; then
        (apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y postgresql) >/dev/null 2>&1
    fi
    programs=$(server_programs)
    [ -n "$programs" ] || return 1
    data=$(mktemp -d) && cd "$data" || return 1
    { [ "$(id -u)" != 0 ] || chown postgres "$data"; } &&
        port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') &&
        as_postgres "$programs/initdb" -D "$data/db" -A trust -U postgres >/dev/null &&
        as_postgres "$programs/pg_ctl" -D "$data/db" -l "$data/log" -w start >/dev/null \
            -o "-p $port -c listen_addresses=127.0.0.1 -k $data -c fsync=off"
    started=$?
    cd "$OLDPWD" || return 1
    export LEDGER_POSTGRES="postgresql://postgres@127.0.0.1:${port:-}/postgres"
    return $started
}

stop_postgres() {
    [ -n "${data:-}" ] || return 0
    (cd "$data" && as_postgres "$programs/pg_ctl" -D "$data/db" -m immediate stop >/dev/null 2>&1)
    rm -rf "$data"
}
