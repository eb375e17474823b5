#include "cmd/bench/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "cmd/bench/energy.h"
#include "cmd/bench/guide.h"
#include "engine/cards.h"
#include "engine/offload.h"
#include "model/pack.h"
#include "plan/predict.h"

/* A file of `moebius synth` remembers how it was made; weights in memory were made by the options. */
void bench_report_mark(struct bench_report *r) {
    const struct engine_options *o = &r->engine->options;
    if (!r->engine->model.synthetic) return;
    if (o->like) {
        char layers[32] = "";
        if (o->like_layers) snprintf(layers, sizeof layers, " --layers %d", o->like_layers);
        snprintf(r->made, sizeof r->made, "--%s %s%s --quant %s --seed %llu", o->like_config ? "config" : "like",
                 o->like, layers, o->quantization, (unsigned long long)o->like_seed);
    } else {
        const char *options = checkpoint_metadata(&r->engine->checkpoint, PACK_PREFIX "options");
        snprintf(r->made, sizeof r->made, "%s", options ? options : "not said how");
    }
    const char *seed = strstr(r->made, "--seed ");
    snprintf(r->mark, sizeof r->mark, "  synthetic%s%.20s", seed ? ", seed " : "",
             seed ? seed + strlen("--seed ") : "");
}

/* ---- for people: every line as soon as it is known ---- */

static void say_model(const struct bench_report *r) {
    const struct engine *e = r->engine;
    printf("%s", e->path);
    if (*r->made) printf(", SYNTHETIC: random weights (%s)", r->made);
    if (*r->hash) printf(", hash %.12s", r->hash);
    printf(" (moebius " MOEBIUS_VERSION ")\n");
}

static void say_opened(const struct bench_report *r) {
    static const char *const compute[] = {"fast", "f32"}, *const cache[] = {"f32", "bf16", "fp8"};
    const struct engine *e = r->engine;
    char tested[48] = "without a self-test";
    if (e->self_test_s > 0) snprintf(tested, sizeof tested, "self-test %.3f s of it", e->self_test_s);
    printf("opened in %.3f s (%s); tokens: %s; compute %s, cache %s\n\n", e->load_s, tested,
           bench_tokens_kind(&r->bench.tokens), compute[e->options.compute], cache[e->options.kv - 1]);
    fflush(stdout);
}

void bench_say_machine(const struct bench_report *r) {
    const struct engine *e = r->engine;
    char layers[CARDS_LAYERS_BYTES];
    say_model(r);
    if (r->gpu) {
        bench_gpu_say_card(r->gpu);
        bench_gpu_say_load(r->gpu);
        if (e->n_parts > 1)
            printf("  the first of %d GPUs that work one after another: %s\n", e->n_parts,
                   engine_cards_layers(e, layers));
        if (e->cpu_layers) {
            const int rows = engine_offload_link_rows(e);
            printf("  the routed experts of %d of %d layers on the CPU", e->cpu_layers, model_moe_layers(&e->model));
            if (rows) printf(", in steps of %d tokens and more over the link on the card", rows);
            printf("\n");
        }
        say_opened(r);
        return;
    }
    printf("machine: %s, %d thread%s %.2f GB/s from memory (%.2f to %.2f)\n", cpu_level_name(r->level),
           e->options.threads, e->options.threads > 1 ? "s read" : " reads", r->read_gb_s.median, r->read_gb_s.min,
           r->read_gb_s.max);
    if (r->int8_tops.median > 0) {
        printf("         and %s %.3f Tera 8-bit operations a second (%.3f to %.3f)\n",
               e->options.threads > 1 ? "do" : "does", r->int8_tops.median, r->int8_tops.min, r->int8_tops.max);
    }
    if (r->engine->store) {
        printf("         its disk gives %.2f GB/s of the model's file, and %d of %d experts have a place\n",
               r->disk_gb_s, store_slots(r->engine->store), store_records(r->engine->store));
    }
    say_opened(r);
}

double bench_share_of_peak(const struct bench_report *r, int i) {
    double operations = bench_prompt_operations(&r->engine->model, &r->engine->weights);
    double rate = r->plan->prompt.values[i] / r->prompt[i].seconds.median * operations;
    return r->int8_tops.median > 0 ? rate / (r->int8_tops.median * 1e12) : 0;
}

static double prompt_tflops(const struct bench_report *r, int i) {
    double operations = bench_prompt_operations(&r->engine->model, &r->engine->weights);
    return r->plan->prompt.values[i] / r->prompt[i].seconds.median * operations * 1e-12;
}

void bench_say_prompts(const struct bench_report *r) {
    const struct bench_plan *plan = r->plan;
    printf("prompt, %d times\n%15s  %10s %10s %10s  %11s  %s\n", plan->repeat, "tokens", "tokens/s", "slowest",
           "fastest", "first token", r->gpu ? "matrices, TFLOP/s" : "of the 8-bit rate");
    for (int i = 0; i < plan->prompt.n; i++) {
        const struct bench_spread *s = &r->prompt[i].seconds;
        int n = plan->prompt.values[i];
        printf("%15d  %10.2f %10.2f %10.2f  %9.3f s", n, n / s->median, n / s->max, n / s->min, s->median);
        if (r->gpu) {
            printf("  %9.2f%s\n", prompt_tflops(r, i), r->mark);
        } else {
            printf("  %7.1f %%%s\n", 100 * bench_share_of_peak(r, i), r->mark);
        }
        bench_experts_say(&r->prompt[i].experts, r->disk_gb_s);
        bench_energy_say(&r->bench.energy, r->prompt[i].joules);
    }
    printf("\ndecode, %d steps each; tokens/s of all sequences together\n", plan->generate);
    printf("%6s %8s  %10s %10s %10s  %9s %8s  %s", "batch", "depth", "tokens/s", "slowest", "fastest", "MB/step",
           "GB/s", "of memory");
    printf(r->gpu ? "  %8s %8s %8s %8s  %s\n" : "\n", "bytes ms", "kernels", "their ms", "step ms", "step / floor");
    fflush(stdout);
}

static double step_s(const struct bench_decode *d) {
    return d->batch / d->tokens_per_s.median;
}

static struct bench_floor floor_of(const struct bench_report *r, const struct bench_decode *d) {
    return bench_gpu_floor(r->gpu, d->bytes_per_step, d->read_gb_s, d->kernels);
}

void bench_say_decode(const struct bench_report *r, const struct bench_decode *d) {
    printf("%6d %8d  %10.2f %10.2f %10.2f  %9.1f %8.2f  %7.1f %%", d->batch, d->depth, d->tokens_per_s.median,
           d->tokens_per_s.min, d->tokens_per_s.max, d->bytes_per_step * 1e-6, d->gb_per_s,
           100 * d->gb_per_s / d->read_gb_s);
    if (r->gpu) {
        struct bench_floor floor = floor_of(r, d);
        printf("  %8.3f %8d %8.3f %8.3f  %8.2f", floor.bytes_s * 1e3, d->kernels, floor.kernels_s * 1e3,
               step_s(d) * 1e3, step_s(d) / floor.s);
    }
    printf("%s\n", r->mark);
    bench_experts_say(&d->experts, r->disk_gb_s);
    bench_energy_say(&r->bench.energy, d->joules);
    fflush(stdout);
}

/* What `plan` expects of the step that was measured, from the memory, the processor and the disk as they were. */
static struct plan_speed predict(const struct bench_report *r, const struct bench_decode *d) {
    const struct engine *e = r->engine;
    struct plan_predictor predictor;
    plan_predictor_init(&predictor, &e->model, &e->weights, e->options.kv - 1, r->level, r->int8_tops.median);
    if (d->experts.is_on) {
        predictor.ssd_gb_s = bench_experts_gb_s(&d->experts);
        predictor.hit_rate = bench_experts_hit_rate(&d->experts);
    }
    return plan_predict_step(&predictor, d->batch, d->depth, d->read_gb_s, d->bytes_per_step);
}

static void say_predictions(const struct bench_report *r) {
    bool has_disk = r->engine->store;
    printf("\nas `moebius plan` predicts it from this memory%s and this processor%s; tokens/s\n",
           has_disk ? ", the reads of this disk" : "", has_disk ? ", with the experts that were there" : "");
    printf("%6s %8s  %10s %10s  %s%s\n", "batch", "depth", "predicted", "measured", "measured / predicted",
           has_disk ? "  predicted if the disk is read meanwhile" : "");
    for (int i = 0; i < r->n_decode; i++) {
        const struct bench_decode *d = &r->decode[i];
        struct plan_speed speed = predict(r, d);
        double expected = plan_speed_expected(&speed);
        printf("%6d %8d  %10.2f %10.2f  %10.2f", d->batch, d->depth, expected, d->tokens_per_s.median,
               d->tokens_per_s.median / expected);
        if (has_disk) printf("  %20.2f", speed.tokens / speed.overlapped_s);
        printf("%s\n", r->mark);
    }
}

void bench_say_end(const struct bench_report *r) {
    if (r->gpu) {
        bench_gpu_say_profile(r->gpu, r->mark);
    } else {
        say_predictions(r);
    }
    printf("\nafterwards %s %.2f GB/s from memory (%.2f to %.2f)\n", r->gpu ? "the card reads" : "the threads read",
           r->read_after_gb_s.median, r->read_after_gb_s.min, r->read_after_gb_s.max);
    printf("resident memory: %.2f GiB, mapped files included\n", r->rss_bytes / (1 << 30));
    if (r->guide) bench_say_guide(r);
}

/* ---- for programs ---- */

/* The three figures of a GPU's step, and how far it is from its floor. */
static void add_floor(const struct bench_report *r, const struct bench_decode *d, json_t *line) {
    struct bench_floor floor = floor_of(r, d);
    json_t *json =
        json_pack("{si sf sf sf sf sf}", "kernels", d->kernels, "bytes_s", floor.bytes_s, "kernels_s", floor.kernels_s,
                  "floor_s", floor.s, "step_s", step_s(d), "step_over_floor", step_s(d) / floor.s);
    json_object_update_new(line, json);
}

static json_t *decode_json(const struct bench_report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->n_decode; i++) {
        const struct bench_decode *d = &r->decode[i];
        if (r->gpu) {
            json_t *line = json_pack("{si si sf sf sf sf sf sf sf sb}", "batch", d->batch, "depth", d->depth,
                                     "tokens_per_s", d->tokens_per_s.median, "tokens_per_s_min", d->tokens_per_s.min,
                                     "tokens_per_s_max", d->tokens_per_s.max, "bytes_per_step", d->bytes_per_step,
                                     "gb_per_s", d->gb_per_s, "read_gb_s", d->read_gb_s, "share_of_bandwidth",
                                     d->gb_per_s / d->read_gb_s, "synthetic", *r->made != '\0');
            json_object_set_new(line, "expert_cache", bench_experts_json(&d->experts, r->disk_gb_s));
            add_floor(r, d, line);
            json_array_append_new(list, line);
            continue;
        }
        struct plan_speed predicted = predict(r, d);
        json_array_append_new(list,
                              json_pack("{si si sf sf sf sf sf sf sf sf sb so}", "batch", d->batch, "depth", d->depth,
                                        "tokens_per_s", d->tokens_per_s.median, "tokens_per_s_min", d->tokens_per_s.min,
                                        "tokens_per_s_max", d->tokens_per_s.max, "predicted_tokens_per_s",
                                        plan_speed_expected(&predicted), "bytes_per_step", d->bytes_per_step,
                                        "gb_per_s", d->gb_per_s, "read_gb_s", d->read_gb_s, "share_of_bandwidth",
                                        d->gb_per_s / d->read_gb_s, "synthetic", *r->made != '\0', "expert_cache",
                                        bench_experts_json(&d->experts, r->disk_gb_s)));
        if (d->experts.has_ranks) json_object_set_new(json_array_get(list, i), "ranks", bench_ranks_json(&d->experts));
    }
    return list;
}

static json_t *prefill_json(const struct bench_report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->n_prompt; i++) {
        const struct bench_spread *s = &r->prompt[i].seconds;
        int n = r->plan->prompt.values[i];
        json_array_append_new(list,
                              json_pack("{si sf sf sf so sf sb so}", "prompt", n, "tokens_per_s", n / s->median,
                                        "tokens_per_s_min", n / s->max, "tokens_per_s_max", n / s->min, "share_of_peak",
                                        r->int8_tops.median > 0 ? json_real(bench_share_of_peak(r, i)) : json_null(),
                                        "ttft_s", s->median, "synthetic", *r->made != '\0', "expert_cache",
                                        bench_experts_json(&r->prompt[i].experts, r->disk_gb_s)));
    }
    return list;
}

static void add_joules(const struct bench_report *r, json_t *root) {
    const struct energy *energy = &r->bench.energy;
    json_t *prefill = json_object_get(root, "prefill"), *decode = json_object_get(root, "decode");
    for (int i = 0; i < r->n_prompt; i++)
        json_object_set_new(json_array_get(prefill, (size_t)i), "joules_per_token",
                            bench_energy_json(energy, r->prompt[i].joules));
    for (int i = 0; i < r->n_decode; i++)
        json_object_set_new(json_array_get(decode, (size_t)i), "joules_per_token",
                            bench_energy_json(energy, r->decode[i].joules));
}

static json_t *machine_json(const struct bench_report *r) {
    if (r->gpu) {
        return json_pack("{ss sf sf sf sf}", "gpu", r->gpu->card.name, "read_gb_s", r->read_gb_s.median,
                         "read_gb_s_min", r->read_gb_s.min, "read_gb_s_max", r->read_gb_s.max, "read_gb_s_after",
                         r->read_after_gb_s.median);
    }
    return json_pack("{sf sf sf sf so si ss}", "read_gb_s", r->read_gb_s.median, "read_gb_s_min", r->read_gb_s.min,
                     "read_gb_s_max", r->read_gb_s.max, "read_gb_s_after", r->read_after_gb_s.median, "int8_tops",
                     r->int8_tops.median > 0 ? json_real(r->int8_tops.median) : json_null(), "threads",
                     r->engine->options.threads, "level", cpu_level_name(r->level));
}

static json_t *synthetic_json(const struct bench_report *r) {
    const char *seed = strstr(r->made, "--seed ");
    if (!*r->made) return json_null();
    return json_pack("{so so}", "made", json_lossy(r->made), "seed",
                     seed ? json_integer((json_int_t)strtoull(seed + strlen("--seed "), NULL, 10)) : json_null());
}

static json_t *cards_json(const struct engine *engine) {
    json_t *list = json_array();
    for (int i = 0; i < engine->n_parts; i++) {
        const struct cuda_part *part = &engine->parts[i];
        json_array_append_new(list, json_pack("{si si si}", "index", part->device, "first_layer", part->first_layer,
                                              "layers", part->n_layers));
    }
    return list;
}

static void add_gpu(const struct bench_report *r, json_t *root) {
    const struct cuda_load *l = &r->gpu->load;
    bool read = !l->generated && l->s > 0;
    json_object_set_new(root, "gpu", bench_gpu_json(r->gpu));
    json_object_set_new(root, "gpus", cards_json(r->engine));
    json_object_set_new(root, "n_cpu_moe", json_integer(r->engine->cpu_layers));
    json_object_set_new(root, "load_gb_s", read ? json_real(l->bytes / l->s * 1e-9) : json_null());
    for (int i = 0; i < r->n_prompt; i++) {
        json_t *line = json_array_get(json_object_get(root, "prefill"), (size_t)i);
        json_object_set_new(line, "tflop_per_s", json_real(prompt_tflops(r, i)));
    }
}

json_t *bench_report_json(const struct bench_report *r) {
    const struct engine *e = r->engine;
    const size_t repacked = e->will_turn ? e->weights.made_bytes : 0;
    json_t *root =
        json_pack("{so so so sf sf sI sI si so sf so ss ss? ss}", "model", json_lossy(e->path), "synthetic",
                  synthetic_json(r), "machine", machine_json(r), "load_s", e->load_s, "self_test_s", e->self_test_s,
                  "rss_bytes", (json_int_t)r->rss_bytes, "repacked_bytes", (json_int_t)repacked,
                  "max_num_batched_tokens", e->options.max_num_batched_tokens, "prefill", prefill_json(r), "ttft_s",
                  r->prompt[0].seconds.median, "decode", decode_json(r), "text", bench_tokens_kind(&r->bench.tokens),
                  "model_hash", *r->hash ? r->hash : NULL, "version", MOEBIUS_VERSION);
    if (root) json_object_set_new(root, "overrides", override_flags_json(&e->checkpoint));
    if (root) add_joules(r, root);
    if (root && r->guide) json_object_set_new(root, "guide", bench_guide_json(r));
    if (root && r->gpu) add_gpu(r, root);
    return root;
}

int bench_report_write(const struct bench_report *r, struct mo_error *error) {
    return r->file ? json_write(bench_report_json(r), r->file, error) : 0;
}
