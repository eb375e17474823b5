# Completion for bash: commands, flags and their choices, as `moebius --help` and `moebius COMMAND --help` list them.

_moebius() {
    local program=$1 current=$2 previous=$3 command=${COMP_WORDS[1]} words=""
    if [ "$COMP_CWORD" = 1 ]; then
        words=$("$program" --help 2>/dev/null | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p')
    elif [[ $current == -* ]]; then
        words=$("$program" "$command" --help 2>/dev/null | sed -n 's/^  \(-[^ ,]*\(, -[^ ,]*\)*\).*/\1/p' | tr -d ,)
    elif [[ $previous =~ ^--?[a-z0-9-]+$ ]]; then # --device auto|cpu|cuda[:N]
        words=$("$program" "$command" --help 2>/dev/null | sed -n "s/^  \(.*, \)\{0,1\}$previous\(,[^A-Z]*\)\{0,1\} \([a-z0-9|]*|[^ ]*\).*/\3/p" |
            tr '|' ' ' | sed 's/\[[^]]*\]//g')
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o bashdefault -o default -F _moebius moebius
