#!/bin/sh
# Installs Chromium for the tests that open the report, if there is none and apt can do it.
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" >/dev/null && exit 0
done
if [ -d "/Applications/Google Chrome.app" ]; then exit 0; fi
if ! command -v apt-get >/dev/null; then
    echo "no Chromium found: the tests that open the report in a browser will be skipped" >&2
    exit 0
fi
run=""
[ "$(id -u)" = 0 ] || run="sudo -n"
echo "installing Chromium for the tests of the report" >&2
if ! { $run apt-get update -qq && $run apt-get install -y -qq --no-install-recommends chromium; } \
    >/dev/null 2>&1; then
    echo "Chromium could not be installed: the tests that open the report will be skipped" >&2
fi
