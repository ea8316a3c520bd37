#!/usr/bin/env bash
# Prometheus' promtool, to evaluate our alerts with, put into FOLDER; Prometheus itself is not installed. Where there is
# no apt to have it from, the tests of the alerts are skipped, so that not getting one is no failure.
# Usage: scripts/install_promtool.sh FOLDER
set -uo pipefail
folder=${1:?name the folder to put promtool into}
if command -v promtool > /dev/null || [ -x "$folder/promtool" ]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if command -v apt-get > /dev/null; then
  { [ "$(id -u)" != 0 ] || apt-get update -qq; } &&
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root prometheus > /dev/null && dpkg -x prometheus_*.deb .) &&
    install "$work/usr/bin/promtool" "$folder/" && exit 0
fi
echo "install_promtool: promtool could not be fetched; the tests of the alerts will be skipped" >&2
