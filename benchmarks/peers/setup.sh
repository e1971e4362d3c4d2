#!/usr/bin/env bash
# Installs the systems that benchmarks compare with, each into a virtual environment of its own:
#
#     benchmarks/peers/setup.sh [FOLDER] [PEER...]      # default: ./peers-env, pbg and pykeen
#
# An environment that holds what is named below is left as it is; one that does not is made anew.
# PYTHON names the interpreter (3.11 or 3.12). A CPU build of torch is a fifth of the other's size:
# name its index as pip's own variables do, for example
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
set -euo pipefail

python=${PYTHON:-python3.11}
folder=${1:-peers-env}
peers=("${@:2}")
[ ${#peers[@]} -gt 0 ] || peers=(pbg pykeen)

# PyTorch-BigGraph imports pkg_resources, which setuptools 81 no longer has; parquet is the reader
# that its importer uses.
requirements() {
    case $1 in
        pbg) echo "torch==2.13.0 torchbiggraph==1.0.0 setuptools<81 parquet==1.3.1" ;;
        pykeen) echo "torch==2.13.0 pykeen==1.11.1" ;;
        *) echo "unknown peer '$1': expected pbg or pykeen" >&2 && return 1 ;;
    esac
}

check() {
    case $1 in
        pbg) "$folder/pbg/bin/python" -c "import torchbiggraph.train, parquet" ;;
        pykeen) "$folder/pykeen/bin/python" -c "import pykeen.pipeline" ;;
    esac
}

install() {
    local peer=$1 wanted stamp=$folder/$1/requirements.txt
    wanted=$(requirements "$peer")
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        echo "$peer: already in $folder/$peer ($wanted)"
        return
    fi
    echo "$peer: installing $wanted into $folder/$peer"
    "$python" -m venv --clear "$folder/$peer"
    # shellcheck disable=SC2086 # one word for each requirement
    "$folder/$peer/bin/python" -m pip install --quiet --disable-pip-version-check $wanted
    check "$peer"
    echo "$wanted" >"$stamp" # last: it says that the environment is whole
    echo "$peer: installed"
}

mkdir -p "$folder"
echo '*' >"$folder/.gitignore"
for peer in "${peers[@]}"; do
    install "$peer"
done
echo "benchmarks find them with --peers $folder"
