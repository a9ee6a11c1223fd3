#!/usr/bin/env bash
# Checks the files in this folder: each with the tools that will read it, and against the program.
#
#   deploy/check.sh [SERVER]      (a built sessiond; target/debug/sessiond by default)
#
# Installs what it needs: with apt-get if that works, the rest into target/ci/deploy. Starts servers on free loopback
# ports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

server=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/debug/sessiond}")
# The oldest and the newest Kubernetes that the manifests support.
KUBERNETES=(1.30.0 1.37.0)
tools=$PWD/target/ci/deploy
work=$(mktemp -d)
python=$tools/venv/bin/python
jobs=()
cleanup() {
    ((${#jobs[@]} == 0)) || kill "${jobs[@]}" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap cleanup EXIT

say() { printf '\n== %s\n' "$*"; }
pass() { printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null; }

install_tools() {
    local packages=() maker=python3
    has kubectl || packages+=(kubernetes-client)
    has systemd-analyze || packages+=(systemd)
    has promtool || packages+=(prometheus)
    has bwrap || packages+=(bubblewrap)
    /usr/bin/python3 -c 'import seccomp' 2>/dev/null || packages+=(python3-seccomp)
    has npm || packages+=(npm)
    python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
    if ((${#packages[@]})); then
        echo "installing ${packages[*]}"
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}"; } \
            >/dev/null
        hash -r
    fi
    mkdir -p "$tools"
    if ! cmp -s deploy/check/requirements.txt "$tools/venv/requirements.txt"; then
        "$maker" -c 'import ensurepip' 2>/dev/null || maker=/usr/bin/python3
        rm -rf "$tools/venv"
        "$maker" -m venv "$tools/venv"
        "$python" -m pip install --quiet --disable-pip-version-check -r deploy/check/requirements.txt
        cp deploy/check/requirements.txt "$tools/venv/"
    fi
    if ! cmp -s deploy/check/package.json "$tools/node_modules/package.json"; then
        cp deploy/check/package.json "$tools/"
        npm install --silent --no-package-lock --ignore-scripts --prefix "$tools"
        cp deploy/check/package.json "$tools/node_modules/"
    fi
}

fits_type() { # fits_type FILE TYPE MODULE
    local program
    program=$tools/$(basename "${1%.*}").mts
    "$python" deploy/check/typed.py "$2" "$3" "$1" >"$program"
    "$tools/node_modules/.bin/tsc" --noEmit --strict --skipLibCheck --module nodenext "$program" || fail "$1 is not a $2"
    pass "$1 is a $2 of $3"
}

kubernetes() {
    local folder=deploy/kubernetes version
    for version in "${KUBERNETES[@]}"; do
        # The schemas are Kubernetes' own. Strict ones reject unknown fields.
        "$tools/venv/bin/kubernetes-validate" --quiet --strict --kubernetes-version "$version" \
            "$folder"/{deployment,networkpolicy,poddisruptionbudget,service,statefulset}.yaml
        pass "fits the schemas of Kubernetes $version"
    done
    fits_type "$folder/servicemonitor.yaml" IServiceMonitor @kubernetes-models/prometheus-operator/monitoring.coreos.com/v1
    kubectl kustomize "$folder" >"$work/kustomized.yaml"
    "$python" deploy/check/kubernetes.py "$server" <"$work/kustomized.yaml"
    # Applied as its first lines say.
    (cd "$folder" && awk 'FNR == 1 { print "---" } 1' statefulset.yaml service.yaml networkpolicy.yaml) |
        "$python" deploy/check/kubernetes.py "$server"
}

systemd() {
    local unit=$work/sessiond.service value drain
    # Points the unit at the built program, which is not installed here.
    sed "s|^ExecStart=[^ ]*|ExecStart=$server|" deploy/systemd/sessiond.service >"$unit"
    # systemd-analyze only warns about an unknown name, so look for this unit in its output. Ignore what it says about
    # the machine's own units.
    systemd-analyze verify --man=no "$unit" 2>"$work/verify.log" || { cat "$work/verify.log" >&2; fail "the unit is wrong"; }
    ! grep -F sessiond.service "$work/verify.log" || fail "the unit is wrong"
    # The threshold is in tenths. A well hardened service that uses IP rates about 1.3, one without any hardening 10.
    systemd-analyze security --offline=true --threshold=15 "$unit" | tail -n 1
    drain=$("$server" serve --help | sed -n '/SESSIOND_DRAIN_TIMEOUT/,/default/ s/.*default: \([0-9]*\)s.*/\1/p')
    value=$(sed -n 's/^TimeoutStopSec=//p' "$unit")
    ((value >= drain + 5)) || fail "a service that drains for $drain s is killed after $value s"
    while read -r value; do
        "$server" serve --help | grep -qE "\[env: ${value}[]=]" || fail "sessiond.env: $value is not a flag of the program"
    done < <(sed -n 's/^#\{0,1\}\(SESSIOND_[A-Z_]*\)=.*/\1/p' deploy/systemd/sessiond.env)
    pass "the unit is right, and its variables are flags"
}

# Waits until a line of FILE matches PATTERN, and prints the address in the first one.
address_in() { # address_in FILE PATTERN
    local deadline=$((SECONDS + 20)) found
    until found=$(sed -n "s/$2/\\1/p" "$1" | head -n 1) && [[ -n $found ]]; do
        ((SECONDS < deadline)) || { cat "$1" >&2; fail "no line of $1 matches: the program did not start"; }
        sleep 0.1
    done
    echo "$found"
}

start_server() { # start_server COMMAND…
    : >"$work/server.log"
    "$@" serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --log-format json 2>"$work/server.log" &
    server_job=$!
    jobs+=("$server_job")
    SESSIOND_ADDR=http://$(address_in "$work/server.log" '.*"listening".*"address":"\([^"]*\)".*')
    admin=$(address_in "$work/server.log" '.*"listening".*"admin_address":"\([^"]*\)".*')
    export SESSIOND_ADDR
}

# Checks that the program can do everything it needs inside the unit's confinement: keep a file, serve, drain, and read
# the file again.
confined() {
    local storage run pid
    storage=$(sed -n 's/^SESSIOND_STORAGE=//p' deploy/systemd/sessiond.env)
    mkdir "$work/state"
    run=(env "SESSIOND_STORAGE=$storage" deploy/check/confined.sh "$server" "$work/state" /run/sessiond)
    start_server "${run[@]}"
    # bwrap waits for the server and exits with its exit code.
    pid=$(pgrep -P "$server_job")
    grep -qP '^Seccomp_filters:\t2$' "/proc/$pid/status" || fail "the server is not confined"
    "$server" create 1 2
    kill -TERM "$pid"
    wait "$server_job" || fail "the drain ends with $?: $(cat "$work/server.log")"
    start_server "${run[@]}"
    "$server" has 1 2
    "$server" watch --snapshot >"$work/watch.log" 2>&1 &
    jobs+=($!)
    address_in "$work/watch.log" '.*\(synced\|snapshot\).*' >/dev/null
    "$python" deploy/check/metrics.py "$admin" "$work/metrics.txt"
    kill -TERM "$(pgrep -P "$server_job")"
    wait "$server_job" || fail "the drain ends with $?: $(cat "$work/server.log")"
    pass "inside the unit's confinement it serves, drains and keeps its file"
}

# Makes some of each call that the metrics count. Two sessions stay.
make_calls() {
    "$server" create 1 2 3
    "$server" has 1
    "$server" destroy 3
    "$server" watch --snapshot >"$work/watch.log" 2>&1 &
    jobs+=($!)
}

start_prometheus() {
    cat >"$work/prometheus.yaml" <<END
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [$PWD/deploy/prometheus/rules.yaml]
scrape_configs: [{job_name: sessiond, static_configs: [{targets: ["$admin"]}]}]
END
    promtool check config "$work/prometheus.yaml" >/dev/null
    prometheus --config.file="$work/prometheus.yaml" --storage.tsdb.path="$work/prometheus" --web.listen-address=127.0.0.1:0 \
        2>"$work/prometheus.log" &
    jobs+=($!)
    prometheus=$(address_in "$work/prometheus.log" '.*msg="Listening on" address=\([^ ]*\).*')
}

monitoring() {
    promtool check rules deploy/prometheus/rules.yaml
    promtool test rules deploy/prometheus/rules_test.yaml
    start_server "$server"
    make_calls
    "$python" deploy/check/metrics.py "$admin" "$work/metrics.txt"
    promtool check metrics <"$work/metrics.txt"
    pass "promtool accepts /metrics"
    start_prometheus
    "$python" deploy/check/metrics.py "$admin" --used-by "$prometheus"
}

[[ -x $server ]] || fail "$server is not a program: run cargo build, or give the path of a sessiond"
say "Tools"
install_tools
say "Kubernetes"
kubernetes
say "systemd"
systemd
confined
say "Grafana"
fits_type deploy/grafana/sessiond.json Dashboard @grafana/schema
say "Prometheus"
monitoring
say "All deployment files passed ($SECONDS s)"
