#!/usr/bin/env bash
# A headless Chromium for the tests of the page, where there is none and this machine lets us install one. Without it
# those tests are skipped, so that not getting one is no failure.
set -uo pipefail
for name in chromium-headless-shell chromium chromium-browser google-chrome; do
  if command -v "$name" > /dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell > /dev/null && exit 0
fi
echo "install_browser: no Chromium could be installed; the tests of the page will be skipped" >&2
