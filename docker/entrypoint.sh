#!/bin/sh
# Hands a mounted job secret to biggraph through the environment, then becomes biggraph.
# biggraph itself reads secret files only with mode 0600 and its own user as owner, which secrets
# mounted by compose do not have.
set -eu

mounted=/run/secrets/biggraph_secret
if [ -z "${BIGGRAPH_SECRET:-}" ] && [ -e "$mounted" ]; then
    [ -r "$mounted" ] || {
        echo "entrypoint.sh: user $(id -u) cannot read $mounted; see docker/README.md" >&2
        exit 2
    }
    BIGGRAPH_SECRET=$(cat "$mounted")
    export BIGGRAPH_SECRET
fi
exec biggraph "$@"
