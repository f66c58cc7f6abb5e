#!/bin/sh
# Runs pytest with the given words in a clone of the last commit, where no compiler is on the path and strange files lie
# about; in a folder of its own, so that the checkout stays as it is.
#   tests/bare.sh .venv-test/bin/python -m "not slow"
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

git clone --quiet "$(dirname "$0")/.." "$folder/clone"
mkdir "$folder/clone/stray folder" "$folder/clone/data" "$folder/bin"
for stray in stray.bin "stray folder/a.wav" data/stray.bin; do
  head -c 1000 /dev/urandom > "$folder/clone/$stray"
done

IFS=:
for path in $PATH; do
  for program in "$path"/*; do
    case ${program##*/} in
      *gcc* | *g++* | *c++* | *clang* | cc) ;;
      *) [ -e "$folder/bin/${program##*/}" ] || ln -sf "$program" "$folder/bin" ;;  # the first on the path counts
    esac
  done
done

cd "$folder/clone"
unset CXX
PATH=$folder/bin TACOMAMBA_CACHE=$folder/cache "$python" -m pytest "$@"
