#!/bin/sh
# Prints moebius(1), made of what the program says of itself: packaging/man.sh PROGRAM
set -eu
program=$1

as_text() { sed -e 's/\\/\\e/g' -e "s/^[.']/\\\\\\&&/" -e 's/-/\\-/g'; }
section() { # TITLE COMMAND...: a command's help as it is
    printf '.SH "%s"\n.nf\n' "$1"
    shift
    text=$("$@") # by itself: what fails in a pipe is not seen
    printf '%s\n' "$text" | as_text
    echo ".fi"
}

version=$("$program" --version)
version=$(printf %s "$version" | sed 's/[^0-9]*\([0-9][0-9.]*\).*/\1/')
printf '.TH MOEBIUS 1 "" "Moebius %s"\n.SH NAME\n' "$version"
printf 'moebius \\- runs and serves DeepSeek'"'"'s mixture\\-of\\-experts models\n'
section SYNOPSIS "$program" --help
for command in $("$program" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p'); do
    section "MOEBIUS $(printf %s "$command" | tr '[:lower:]' '[:upper:]')" "$program" "$command" --help-all
done
