#!/bin/sh
# Installs espeak-ng for the test of docs/own-data.md, if there is none and apt can do it.
command -v espeak-ng >/dev/null && exit 0
if ! command -v apt-get >/dev/null; then
    echo "no espeak-ng found: the test of spoken digits will be skipped" >&2
    exit 0
fi
run=""
[ "$(id -u)" = 0 ] || run="sudo -n"
echo "installing espeak-ng for the test of spoken digits" >&2
if ! { $run apt-get update -qq && DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq \
    --no-install-recommends espeak-ng; } >/dev/null 2>&1; then
    echo "espeak-ng could not be installed: the test of spoken digits will be skipped" >&2
fi
