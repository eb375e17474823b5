/* cmd/plan/text.c - one plan for people. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "cmd/plan/plan.h"
#include "plan/ranks.h"

static const double GB = 1e9;

/* In GB, or MB for models that are toys: text [24]. */
static const char *size_text(double bytes, char text[24]) {
    if (bytes < 0.1 * GB && bytes > 0) {
        snprintf(text, 24, "%10.3f MB", bytes * 1e-6);
    } else {
        snprintf(text, 24, "%10.3f GB", bytes / GB);
    }
    return text;
}

static void say_size(const char *name, double bytes, const char *more) {
    char text[24];
    printf("  %-24s %s%s%s\n", name, size_text(bytes, text), more[0] ? "   " : "", more);
}

static void say_model(const struct plan_report *r) {
    const struct plan_input *in = &r->input;
    const char *recipe = in->weights.measured ? "as the files have them" : in->quant.name;
    printf("%s: %.3f B parameters, %.3f B active a token; weights: %s%s\n", in->arch.name,
           (double)plan_arch_total(&in->arch) * 1e-9, (double)plan_arch_active(&in->arch) * 1e-9, recipe,
           r->recipe_is_published && !in->weights.measured ? ", as published" : "");
    if (in->weights.note[0]) printf("note: %s\n", in->weights.note);
    if (!in->weights.measured && !plan_quant_is_real(&in->quant))
        printf("note: a number of bits is for planning; this engine has no such format\n");
}

static void say_machine(const struct plan_report *r) {
    const struct plan_machine *m = &r->input.machine;
    if (m->gpu.count) {
        printf("card: %d x %s, %.2f GB, %.0f GB/s, %.0f TFLOPS (%s)", m->gpu.count, m->gpu.name,
               m->gpu.memory_bytes / GB, m->gpu.gb_s, m->gpu.tflops, r->gpu_from);
        printf(m->gpu.count > 1 ? "; work shared by %s\n" : "\n", plan_parallel_name(m->parallel));
    } else {
        printf("card: none (%s)\n", r->gpu_from);
    }
    printf("RAM: %.2f GB (%s)", m->ram_bytes / GB, r->ram_from);
    if (m->ram_gb_s > 0) printf(", %.2f GB/s (%s)", m->ram_gb_s, r->ram_speed_from);
    if (m->ssd_gb_s > 0) printf("; disk: %.2f GB/s (%s)", m->ssd_gb_s, r->ssd_from);
    if (m->nodes > 1)
        printf("; %d such machines, %.2f GB/s and %.0f us between them", m->nodes, m->network_gb_s, m->network_s * 1e6);
    printf("\n");
}

static void say_room(const char *name, const struct plan_room *room) {
    if (room->need_bytes <= 0) return;
    printf("  %-24s %10.3f GB of %.3f GB that may be taken\n", name, room->need_bytes / GB, room->have_bytes / GB);
}

static void say_tables(const struct plan_report *r) {
    const struct plan_weights *w = &r->input.weights;
    char more[96];
    if (w->bytes[PLAN_TABLES] <= 0) return;
    snprintf(more, sizeof more, "%s; read from the file: %d rows a token", w->format[PLAN_TABLES].name,
             plan_arch_table_reads(&r->input.arch));
    say_size("n-gram tables", w->bytes[PLAN_TABLES], more);
}

static void say_memory(const struct plan_report *r) {
    const struct plan_memory *m = &r->memory;
    const struct plan_weights *w = &r->input.weights;
    char more[128];
    printf("\nmemory\n");
    for (int i = 0; i < PLAN_GROUPS; i++) {
        if (w->bytes[i] <= 0 || i == PLAN_TABLES) continue;
        snprintf(more, sizeof more, "%s, %.3f bits a weight", w->format[i].name, w->bytes[i] * 8 / w->params[i]);
        say_size(plan_group_name((enum plan_group)i), w->bytes[i], more);
    }
    say_size("weights", m->weights_bytes, "");
    snprintf(more, sizeof more, "%d x %d tokens, %.0f B a token%s (%s%s)", r->input.wish.seqs, r->input.wish.context,
             m->kv_bytes_per_token, plan_arch_is_hybrid(&r->input.arch) ? " and windows" : "",
             plan_arch_is_latent(&r->input.arch) ? "latent, " : "", plan_kv_name(r->input.wish.kv));
    say_size("cache", m->kv_bytes, more);
    snprintf(more, sizeof more, "%d rows a step", r->input.wish.batched_tokens);
    say_size("scratch", m->scratch_bytes, more);
    if (m->graphs_bytes > 0) say_size("driver and graphs", m->graphs_bytes, "assumed");
    say_size("all", m->total_bytes, "");
    say_tables(r);
    if (w->left_out_bytes > 0)
        printf("  (prediction layers%s of %.3f GB are left out)\n",
               r->input.arch.hybrid.kind == HYBRID_CSA2 ? " and what sees images" : "", w->left_out_bytes / GB);
}

static void say_others(const struct plan_report *r) {
    int sizes[PLAN_MAX_RANKS], n = r->input.machine.nodes;
    struct plan_exchange e;
    plan_ranks_deal(&r->input, r->memory.gpu.need_bytes > 0, sizes);
    plan_ranks_exchange(&r->input.arch, sizes, n, 1, &e);
    say_room("RAM of each other", &r->memory.other);
    printf("  %-24s %d, the others %d to %d, of %d; a token's rows: %.1f KB there and %.1f KB back a layer\n",
           "experts of the first", sizes[0], sizes[1], sizes[n - 1], r->input.arch.experts, e.sent_bytes * 1e-3,
           e.received_bytes * 1e-3);
}

static void say_hits(const struct plan_report *r) {
    const struct plan_memory *m = &r->memory;
    const struct plan_curve *curve = &r->input.machine.curve;
    const char *from = plan_report_hits_from(r);
    if (!from) {
        if (curve->n && m->fits) printf("note: no expert is read from disk: --expert-trace changes nothing\n");
        return;
    }
    printf("  %-24s %10.1f %% (the others are read when they are needed: --expert-cache)\n", "experts in RAM",
           m->held * 100);
    printf("  %-24s %10.1f %%: ", "hit rate", plan_hit_rate(&r->input, m) * 100);
    if (!strcmp(from, "given")) {
        printf("given\n");
    } else if (!strcmp(from, "assumed")) {
        printf("assumed, as if all experts were alike (`moebius experts` finds it for a text)\n");
    } else {
        printf("of %d tokens %s%.100s, by our cache's rule%s\n", curve->tokens,
               curve->generated ? "written after " : "of ", curve->source,
               curve->synthetic ? "; RANDOM WEIGHTS: it says nothing of text" : "");
    }
}

/* What a user can say to have the same. */
static void say_split(const struct plan_report *r) {
    const struct plan_input *in = &r->input;
    printf("  %-24s %d of %d layers' in RAM, the others' on the card%s (--n-cpu-moe %d%s)\n", "routed experts",
           plan_cpu_layers(in, &r->memory), plan_arch_moe_layers(&in->arch), in->machine.gpu.count > 1 ? "s" : "",
           plan_cpu_layers(in, &r->memory), in->machine.cpu_layers ? "" : ": as few as this context allows");
}

static void say_fit(const struct plan_report *r) {
    const struct plan_memory *m = &r->memory;
    printf("\n%s: %s (class %s)\n", m->fits ? "fits" : "does not fit", plan_place_text(m->place), plan_report_class(r));
    if (m->card_layers) say_split(r);
    const char *not_here = plan_report_not_here(r);
    if (not_here) printf("note: planned from formulas; %s\n", not_here);
    say_room("each card", &m->gpu);
    bool has_others = m->other.have_bytes > 0;
    say_room(has_others ? "RAM of the first machine" : m->gpu.need_bytes > 0 ? "RAM" : "each machine's RAM", &m->ram);
    if (has_others) say_others(r);
    printf("  %-24s %10.3f GB%s\n", m->fits ? "headroom" : "short of", fabs(m->headroom_bytes) / GB,
           m->fits && m->headroom_bytes == 0 && m->held < 1 ? " (what RAM cannot hold is on disk)" : "");
    say_hits(r);
}

static void say_largest(const struct plan_report *r) {
    static const int seqs[] = {1, 2, 4, 8, 16, 32, 64};
    double tokens = r->memory.cache_tokens;
    printf("  room for %.0f tokens of cache", tokens);
    const char *before = ": ";
    for (size_t i = 0; i < sizeof seqs / sizeof *seqs; i++) {
        double each = floor(tokens / seqs[i]);
        if (each < 1024) break;
        printf("%s%d x %.0f", before, seqs[i], fmin(each, r->input.arch.context));
        before = ", ";
    }
    printf("\n");
}

static void say_nearest(const struct plan_report *r) {
    if (r->memory.fits) return;
    printf(r->n_nearest ? "\nnearest settings that fit\n" : "\nno setting that was tried fits\n");
    for (int i = 0; i < r->n_nearest; i++) {
        const struct plan_nearest *near = &r->nearest[i];
        printf("  %-56s headroom %.2f GB; %s\n", near->flags, near->headroom_bytes / GB, plan_place_text(near->place));
    }
}

static bool reads_disk(const struct plan_report *r) {
    return r->input.machine.ssd_gb_s > 0 && r->memory.held < 1;
}

static void say_decode(const struct plan_report *r) {
    bool disk = reads_disk(r);
    printf("\ndecode, tokens/s of all sequences together\n%6s %7s %8s %10s %10s %10s %12s%s\n", "batch", "depth",
           "experts", "MB/step", "limit", "expected", "each", disk ? "  overlapped" : "");
    for (int i = 0; i < r->n_decode; i++) {
        const struct plan_speed *s = &r->decode[i];
        printf("%6d %7d %8.2f %10.1f %10.2f %10.2f %12.2f", s->batch, s->depth,
               plan_arch_distinct_experts(&r->input.arch, s->batch), s->bytes * 1e-6, plan_speed_limit(s),
               plan_speed_expected(s), plan_speed_expected(s) / s->batch);
        printf(disk ? " %11.2f\n" : "\n", s->batch / s->overlapped_s);
    }
    printf("experts: distinct ones of a layer, if the sequences choose independently; text is more alike\n");
}

static void say_prefill(const struct plan_report *r) {
    if (!r->n_prefill) {
        printf("\nprefill: not known without --cpu-gflops\n");
        return;
    }
    bool disk = reads_disk(r);
    printf("\nprefill, one prompt\n%14s %10s %10s %14s%s\n", "tokens", "limit", "expected", "first token",
           disk ? "  overlapped" : "");
    for (int i = 0; i < r->n_prefill; i++) {
        const struct plan_speed *s = &r->prefill[i];
        printf("%14d %10.1f %10.1f %12.3f s", s->tokens, plan_speed_limit(s), plan_speed_expected(s), s->expected_s);
        printf(disk ? " %11.1f\n" : "\n", s->tokens / s->overlapped_s);
    }
}

static void say_where_from(const struct plan_report *r) {
    bool gpu = r->memory.gpu.need_bytes > 0;
    printf("\nexpected: %s. --explain has every formula.\n",
           gpu ? "a prediction of this engine's design, not measured by us"
               : "the limit by the shares that this engine reached in our own runs");
}

/* ---- --explain ---- */

static const char *unit_of(enum plan_work work) {
    return work == PLAN_BYTES ? "GB" : work == PLAN_OPS ? "Gop" : "times";
}

static void explain_part(const struct plan_part *p) {
    if (p->work == PLAN_WAIT) {
        printf("    %-44s %10.0f x %.2f us = %.3f ms%s\n", p->what, p->amount, 1e6 / p->rate, p->expected_s * 1e3,
               p->limit_s > 0 ? "" : " (no limit of the hardware)");
        return;
    }
    printf("    %-44s %10.3f %s / %.2f %s/s = %.3f ms; / %.2f = %.3f ms\n", p->what, p->amount * 1e-9, unit_of(p->work),
           p->rate * 1e-9, unit_of(p->work), p->limit_s * 1e3, p->share, p->expected_s * 1e3);
}

static void explain_speed(const struct plan_speed *s, const char *what) {
    if (s->depth || s->tokens == s->batch) {
        printf("\n  %s, batch %d, depth %d\n", what, s->batch, s->depth);
    } else {
        printf("\n  %s, %d tokens\n", what, s->tokens);
    }
    for (int i = 0; i < s->n_parts; i++) explain_part(&s->parts[i]);
    printf("    limit %.3f ms = %.2f tokens/s; expected %.3f ms = %.2f tokens/s", s->limit_s * 1e3, plan_speed_limit(s),
           s->expected_s * 1e3, plan_speed_expected(s));
    if (s->overlapped_s < s->expected_s)
        printf("; disk beside the rest %.3f ms = %.2f tokens/s", s->overlapped_s * 1e3, s->tokens / s->overlapped_s);
    printf("\n");
}

static void explain_constants(void) {
    printf("\n  constants\n");
    for (int i = 0; i < PLAN_CONSTANTS; i++) {
        const struct plan_efficiency *e = plan_efficiency_get((enum plan_constant)i);
        printf("    %-22s %10g  %s\n", e->name, e->value, e->origin);
    }
}

static void explain(const struct plan_report *r) {
    printf(
        "\nhow it is computed\n"
        "  time of a part = bytes / (bytes a second) or operations / (operations a second)\n"
        "  limit    = the slowest device, all working at once at full speed, and the waits between machines\n"
        "  expected = the devices one after the other, each at its share of full speed; bytes and operations of one\n"
        "             device overlap; and all waits\n"
        "  bytes of a step = all matrices but the routed experts, once; the experts that the batch meets, once;\n"
        "             batch x depth rows of the cache. Norms and the embedding's rows are left out.\n"
        "  experts met in a layer = E (1 - (1 - k/E)^batch) of E = %d, k = %d\n"
        "  fits     = weights + cache + scratch + driver <= %.2f of a card; of the RAM that is free, the same share; "
        "of\n"
        "             RAM that was given, all but 8 GB (or an eighth)\n"
        "  split    = --n-cpu-moe N: layers whose routed experts the processor computes beside a card: as few as let "
        "the rest fit there\n"
        "  held     = (RAM - what else lies there) / all experts that are not on the card\n"
        "  hit rate = --hit-rate, or --expert-trace at the share held (one sequence's), or held: all experts alike\n"
        "  missed experts are read from disk to RAM, and then from RAM\n"
        "  prompts  = in steps of so many rows that the processor would take longer, all experts in RAM go over the "
        "card's\n"
        "             link, at a third of the RAM's speed at most, and the card computes them (--no-op-offload: "
        "never)\n"
        "  tensor   = weights / cards a step; the latent cache on every card; two all-reduces a layer, each of two "
        "hops\n"
        "             and 2 (n-1)/n rows of 16 bits over the link\n"
        "  expert   = experts / cards, the rest and the sequences on each; two all-to-alls a layer of experts\n"
        "  pipeline = memory / cards, the time of one; a hop for each stage and step; machines always so among "
        "themselves\n"
        "             when they have several cards\n"
        "  ranks    = routed experts / machines; a layer takes what the machine takes that has most of the experts "
        "met\n"
        "             (chance deals them: more than evenly), then two latencies and its rows there and back: 4 B a "
        "value\n"
        "             of the row to each machine that it needs, and of each expert's output from there\n",
        r->input.arch.experts, r->input.arch.top_k, r->input.wish.utilization);
    for (int i = 0; i < r->n_decode; i++) explain_speed(&r->decode[i], "decode");
    for (int i = 0; i < r->n_prefill; i++) explain_speed(&r->prefill[i], "prefill");
    explain_constants();
}

/* What people are told about this class of machine, and what that was. */
static void say_class(const struct plan_report *r) {
    if ((double)plan_arch_total(&r->input.arch) < 400e9) return;
    printf("\n671B on machines like this: \"5-15 tokens/s\" is the class ram, \"1-5\" is nvme or a desktop's RAM, "
           "\"out of\n"
           "memory\" is vram asked of too few cards, \"5.37\" is a cluster of eight desktops; yours is %s.\n"
           "moebius plan --table estimates works each of them out.\n",
           plan_report_class(r));
}

void plan_print_text(const struct plan_report *r) {
    say_model(r);
    say_machine(r);
    say_memory(r);
    say_fit(r);
    if (r->memory.fits) say_largest(r);
    say_nearest(r);
    say_class(r);
    if (r->memory.fits) {
        say_decode(r);
        say_prefill(r);
        say_where_from(r);
    }
    if (r->arguments->explain) explain(r);
}
