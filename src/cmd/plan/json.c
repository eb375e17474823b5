/* cmd/plan/json.c - one plan for programs. */
#include "base/json.h"
#include "cmd/plan/plan.h"
#include "plan/ranks.h"

static json_t *groups_json(const struct plan_weights *w) {
    json_t *groups = json_object();
    for (int i = 0; i < PLAN_GROUPS; i++) {
        if (w->bytes[i] <= 0 || i == PLAN_TABLES) continue;
        json_object_set_new(groups, plan_group_name((enum plan_group)i),
                            json_pack("{sI sI ss}", "params", (json_int_t)w->params[i], "bytes",
                                      (json_int_t)w->bytes[i], "format", w->format[i].name));
    }
    return groups;
}

static json_t *parts_json(const struct plan_speed *s) {
    static const char *const devices[] = {"gpu", "cpu", "link", "disk", "wait"};
    static const char *const works[] = {"bytes", "operations", "waits"};
    json_t *list = json_array();
    for (int i = 0; i < s->n_parts; i++) {
        const struct plan_part *p = &s->parts[i];
        json_array_append_new(list,
                              json_pack("{ss ss ss sf sf sf sf sf}", "what", p->what, "device", devices[p->device],
                                        "of", works[p->work], "amount", p->amount, "rate", p->rate, "share", p->share,
                                        "limit_s", p->limit_s, "expected_s", p->expected_s));
    }
    return list;
}

static json_t *speed_json(const struct plan_report *r, const struct plan_speed *s, bool is_decode) {
    json_t *json = json_pack("{sf sf sI}", "limit_tokens_per_s", plan_speed_limit(s), "expected_tokens_per_s",
                             plan_speed_expected(s), is_decode ? "bytes_per_step" : "bytes", (json_int_t)s->bytes);
    if (is_decode) {
        json_object_set_new(json, "batch", json_integer(s->batch));
        json_object_set_new(json, "depth", json_integer(s->depth));
        json_object_set_new(json, "distinct_experts", json_real(plan_arch_distinct_experts(&r->input.arch, s->batch)));
    } else {
        json_object_set_new(json, "tokens", json_integer(s->tokens));
        json_object_set_new(json, "ttft_s", json_real(s->expected_s));
    }
    json_object_set_new(json, "overlapped_tokens_per_s", json_real(s->tokens / s->overlapped_s));
    if (r->arguments->explain) json_object_set_new(json, "parts", parts_json(s));
    return json;
}

static json_t *speeds_json(const struct plan_report *r, const struct plan_speed *speeds, int n, bool is_decode) {
    json_t *list = json_array();
    for (int i = 0; i < n && r->memory.fits; i++) json_array_append_new(list, speed_json(r, &speeds[i], is_decode));
    return list;
}

static json_t *machine_json(const struct plan_report *r) {
    const struct plan_machine *m = &r->input.machine;
    return json_pack("{s{ss si sI sf sf ss} s{sI sf ss ss} s{sf ss} sf si ss s{sf sf}}", "gpu", "name", m->gpu.name,
                     "count", m->gpu.count, "memory_bytes", (json_int_t)m->gpu.memory_bytes, "gb_s", m->gpu.gb_s,
                     "tflops", m->gpu.tflops, "from", r->gpu_from, "ram", "bytes", (json_int_t)m->ram_bytes, "gb_s",
                     m->ram_gb_s, "from", r->ram_from, "speed_from", r->ram_speed_from, "disk", "gb_s", m->ssd_gb_s,
                     "from", r->ssd_from, "cpu_gflops", m->cpu_gflops, "nodes", m->nodes, "parallel",
                     plan_parallel_name(m->parallel), "network", "gb_s", m->network_gb_s, "s", m->network_s);
}

static json_t *nearest_json(const struct plan_report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->n_nearest; i++) {
        json_array_append_new(list, json_pack("{ss sI ss}", "flags", r->nearest[i].flags, "headroom_bytes",
                                              (json_int_t)r->nearest[i].headroom_bytes, "class",
                                              plan_place_name(r->nearest[i].place)));
    }
    return list;
}

static json_t *constants_json(void) {
    json_t *all = json_object();
    for (int i = 0; i < PLAN_CONSTANTS; i++) {
        const struct plan_efficiency *e = plan_efficiency_get((enum plan_constant)i);
        json_object_set_new(all, e->name,
                            json_pack("{sf sb ss}", "value", e->value, "measured", e->measured, "origin", e->origin));
    }
    return all;
}

static json_t *ranks_json(const struct plan_report *r) {
    const struct plan_memory *m = &r->memory;
    int sizes[PLAN_MAX_RANKS];
    struct plan_exchange e;
    json_t *experts = json_array();
    plan_ranks_deal(&r->input, m->gpu.need_bytes > 0, sizes);
    plan_ranks_exchange(&r->input.arch, sizes, r->input.machine.nodes, 1, &e);
    for (int i = 0; i < r->input.machine.nodes; i++) json_array_append_new(experts, json_integer(sizes[i]));
    return json_pack("{so sI sI sI sf sf}", "experts", experts, "first_bytes", (json_int_t)m->ram.need_bytes,
                     "other_bytes", (json_int_t)m->other.need_bytes, "have_bytes", (json_int_t)m->ram.have_bytes,
                     "sent_bytes_per_layer", e.sent_bytes, "received_bytes_per_layer", e.received_bytes);
}

/* What is read from the file, row by row. */
static json_t *tables_json(const struct plan_input *in) {
    const struct plan_weights *w = &in->weights;
    if (w->bytes[PLAN_TABLES] <= 0) return json_null();
    return json_pack("{sI ss si}", "bytes", (json_int_t)w->bytes[PLAN_TABLES], "format", w->format[PLAN_TABLES].name,
                     "rows_per_token", plan_arch_table_reads(&in->arch));
}

static bool uses_card(const struct plan_memory *m) {
    return m->place <= PLAN_IN_GPU_RAM_SSD;
}

static json_t *memory_json(const struct plan_report *r) {
    const struct plan_memory *m = &r->memory;
    const struct plan_input *in = &r->input;
    json_t *root = json_pack(
        "{ss s{sI sI} ss sI so sI sf sI sI sI sI sb sI sI sf ss ss si si ss}", "model", in->arch.name, "params",
        "total", (json_int_t)plan_arch_total(&in->arch), "active", (json_int_t)plan_arch_active(&in->arch), "recipe",
        in->weights.measured ? "files" : in->quant.name, "weights_bytes", (json_int_t)m->weights_bytes, "groups",
        groups_json(&in->weights), "left_out_bytes", (json_int_t)in->weights.left_out_bytes, "kv_bytes_per_token",
        m->kv_bytes_per_token, "kv_bytes", (json_int_t)m->kv_bytes, "scratch_bytes", (json_int_t)m->scratch_bytes,
        "graphs_bytes", (json_int_t)m->graphs_bytes, "total_bytes", (json_int_t)m->total_bytes, "fits", m->fits,
        "headroom_bytes", (json_int_t)m->headroom_bytes, "cache_tokens", (json_int_t)m->cache_tokens, "held", m->held,
        "class", plan_report_class(r), "place", plan_place_text(m->place), "context", in->wish.context, "seqs",
        in->wish.seqs, "kv_cache_dtype", plan_kv_name(in->wish.kv));
    json_object_set_new(root, "n_cpu_moe", uses_card(m) ? json_integer(plan_cpu_layers(in, m)) : json_null());
    const char *not_here = plan_report_not_here(r);
    json_object_set_new(root, "not_here", not_here ? json_string(not_here) : json_null());
    const char *hits_from = plan_report_hits_from(r);
    json_object_set_new(root, "hit_rate", json_real(plan_hit_rate(in, m)));
    json_object_set_new(root, "hit_rate_from", hits_from ? json_string(hits_from) : json_null());
    json_object_set_new(root, "tables", tables_json(in));
    if (plan_shares_experts(in)) json_object_set_new(root, "ranks", ranks_json(r));
    if (in->weights.note[0]) json_object_set_new(root, "note", json_string(in->weights.note));
    return root;
}

int plan_print_json(const struct plan_report *r, struct mo_error *error) {
    json_t *root = memory_json(r);
    json_object_set_new(root, "machine", machine_json(r));
    json_object_set_new(root, "decode", speeds_json(r, r->decode, r->n_decode, true));
    json_object_set_new(root, "prefill", speeds_json(r, r->prefill, r->n_prefill, false));
    json_object_set_new(root, "nearest", nearest_json(r));
    if (r->arguments->explain) json_object_set_new(root, "constants", constants_json());
    return json_print(root, error);
}
