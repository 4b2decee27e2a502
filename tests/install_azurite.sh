#!/bin/sh
# Installs azurite, the server of the tests of az:// paths, into build/, if npm can do it.
[ -x build/azurite/node_modules/.bin/azurite-blob ] && exit 0
if ! command -v npm >/dev/null && command -v apt-get >/dev/null; then
    run=""
    [ "$(id -u)" = 0 ] || run="sudo -n"
    { $run apt-get update -qq && $run apt-get install -y -qq --no-install-recommends npm; } \
        >/dev/null 2>&1
fi
echo "installing azurite for the tests of az:// paths" >&2
if ! npm install --silent --no-audit --no-fund --prefix build/azurite azurite@3.37.0 \
    >/dev/null 2>&1; then
    echo "azurite could not be installed: the tests of az:// paths will be skipped" >&2
fi
