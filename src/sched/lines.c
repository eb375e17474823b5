#include "sched/lines.h"

size_t line_rule_push(struct line_rule *rule, const char *text, size_t size) {
    for (size_t i = 0; i < size && !rule->ended; i++) {
        bool is_blank = text[i] == ' ' || text[i] == '\t';
        if (rule->at_start && !is_blank && rule->n_blanks < rule->min_indent) {
            rule->ended = true;
            return i;
        }
        if (text[i] == '\n') {
            rule->has_break = rule->at_start = true;
            rule->n_blanks = 0;
        } else if (!is_blank) {
            rule->at_start = false;
        } else if (rule->n_blanks < rule->min_indent) {
            rule->n_blanks++;
        }
    }
    return rule->ended ? 0 : size;
}
