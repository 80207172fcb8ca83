#!/usr/bin/env bash
# Makes the picture of the page for the README with Chromium, from a pipeline that loads synthetic events.
#
#   screenshot.sh [FILE [WIDTH [HEIGHT [light|dark]]]]        default: docs/page.png 1280 1040 light
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
repository=$PWD
file=$(realpath "${1:-docs/page.png}") width=${2:-1280} height=${3:-1040} colours=${4:-light}

cargo build --locked --quiet
program=$(realpath "${CARGO_TARGET_DIR:-target}/debug/dataloader")
work=$(mktemp -d)
pipeline=
clean_up() {
    if [[ $pipeline ]]; then
        kill "$pipeline" 2>/dev/null || true
        wait "$pipeline" || true
    fi
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work"
"$program" run --http 0 2>log &
pipeline=$!

# await COMMAND...: until the command succeeds.
await() {
    local left=300
    until "$@"; do
        if ((left-- == 0)); then
            cat log >&2
            exit 1
        fi
        sleep 0.2
    done
}
processed() { [[ $(find inbox -path '*/processed/*' -type f | wc -l) -eq $1 ]]; }

await grep -q 'watching ' log
page=$(sed -n 's|.*the page is at \(http://[^ /]*\).*|\1|p' log | head -n 1)
"$program" drop --dataset orgs "$repository/raw_data/orgs/orgs_sample.json"
for seed in 1 2 3; do
    # Few machines have fonts for all scripts that the names are written in.
    "$program" generate --events 6000 --seed "$seed" | LC_ALL=C grep -v $'[\x80-\xff]' | head -n 4000 >"export-$seed.ndjson"
    "$program" drop "export-$seed.ndjson"
done
printf '%s\n' '{"id": "4711", "received_at": "2020-13-01 08:00:00"}' '{"id": "4712"}' >broken-clock.ndjson
"$program" drop broken-clock.ndjson
await processed 5
"$program" model >>log 2>&1

chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --user-data-dir="$work/browser" \
    --blink-settings=preferredColorScheme="$([[ $colours == dark ]] && echo 0 || echo 1)" \
    --window-size="$width,$height" --timeout=4000 --screenshot="$file" "$page/" >>log 2>&1
[[ -s $file ]]
printf 'screenshot.sh: %s has %s bytes\n' "$file" "$(wc -c <"$file")" >&2
