#include "cmd/bench/tokens.h"

#include <string.h>
#include "sched/philox.h"

/* Prose, code and letters in several languages, written for this: routers send them to different experts. */
static const char sample_text[] =
    "The lighthouse on the northern point was built in a single summer, by nine masons and a cook, from stone that a "
    "winter\n"
    "storm had thrown up on the beach. For the first forty years its lamp burned whale oil; then came paraffin, then "
    "gas, and at\n"
    "last a bulb no larger than an apple. Ships stopped needing it long before people stopped looking for it in the "
    "evening.\n"
    "\n"
    "def merge_intervals(intervals):\n"
    "    \"\"\"Joins overlapping ranges. Takes and returns pairs (start, end), sorted.\"\"\"\n"
    "    merged = []\n"
    "    for start, end in sorted(intervals):\n"
    "        if merged and start <= merged[-1][1]:\n"
    "            merged[-1] = (merged[-1][0], max(merged[-1][1], end))\n"
    "        else:\n"
    "            merged.append((start, end))\n"
    "    return merged\n"
    "\n"
    "A good stock needs time more than it needs ingredients. Roast 2 kg of bones at 220 degrees until they are brown, "
    "cover them\n"
    "with cold water, and keep the pot just below boiling for six hours; skim whatever rises. Salt comes last, because "
    "the liquid\n"
    "will lose a third of its volume, and nobody can take salt out again.\n"
    "\n"
    "static size_t count_words(const char *text, size_t size) {\n"
    "    size_t words = 0;\n"
    "    bool inside = false;\n"
    "    for (size_t i = 0; i < size; i++) {\n"
    "        bool blank = text[i] == ' ' || text[i] == '\\n' || text[i] == '\\t';\n"
    "        if (!blank && !inside) words++;\n"
    "        inside = !blank;\n"
    "    }\n"
    "    return words;\n"
    "}\n"
    "\n"
    "Why does ice float? Water is densest at about 4 degrees Celsius. Below that its molecules settle into an open "
    "lattice, held\n"
    "apart by hydrogen bonds, so the solid takes up roughly nine per cent more room than the liquid. A lake therefore "
    "freezes from\n"
    "the top, and the fish below spend the winter in water that never gets colder than the bottom of a cellar.\n"
    "\n"
    "SELECT city, COUNT(*) AS orders, ROUND(AVG(total), 2) AS mean_total\n"
    "FROM orders JOIN customers ON customers.id = orders.customer_id\n"
    "WHERE placed_at >= '2021-01-01' AND status <> 'cancelled'\n"
    "GROUP BY city HAVING COUNT(*) > 25 ORDER BY mean_total DESC;\n"
    "\n"
    "Der Zug hielt auf freier Strecke, und niemand sagte, warum. Nach einer Weile stiegen die ersten aus und setzten "
    "sich ins Gras.\n"
    "Une heure plus tard, quelqu'un avait ouvert une bouteille de cidre, et deux enfants vendaient des cerises au bord "
    "de la voie.\n"
    "\n"
    "interface Job { id: number; run: () => Promise<void>; retries: number }\n"
    "\n"
    "async function drain(queue: Job[], limit = 4): Promise<number> {\n"
    "  let failed = 0;\n"
    "  const worker = async () => {\n"
    "    for (let job = queue.shift(); job; job = queue.shift()) {\n"
    "      try { await job.run(); } catch { if (job.retries-- > 0) queue.push(job); else failed++; }\n"
    "    }\n"
    "  };\n"
    "  await Promise.all(Array.from({ length: limit }, worker));\n"
    "  return failed;\n"
    "}\n"
    "\n"
    "Dear Ms Okafor, thank you for the quick answer. We can deliver 36 chairs by the 14th and the remaining 12 in the "
    "week after;\n"
    "the price of 89.50 each stays as agreed. If the loading ramp is on Mill Street, please tell the driver the number "
    "of the gate.\n";

enum {
    SEED = 20240507,
    SEQ_STEP = 61, /* tokens of the text between the beginnings of two sequences; prime */
};

int bench_tokens_open(struct bench_tokens *tokens, const struct tokenizer *tokenizer, int vocab,
                      struct mo_error *error) {
    *tokens = (struct bench_tokens){.bos = -1, .vocab = vocab};
    if (!tokenizer) return 0;
    if (tokenizer_adds_bos(tokenizer)) tokens->bos = tokenizer_bos(tokenizer);
    int code = tokenizer_encode(tokenizer, sample_text, strlen(sample_text), false, &tokens->text, error);
    if (!code && tokens->text.n % SEQ_STEP == 0) tokens->text.n--; /* else sequences begin at the same places again */
    return code;
}

void bench_tokens_close(struct bench_tokens *tokens) {
    token_list_free(&tokens->text);
}

static int32_t random_id(int seq, int pos, int vocab) {
    const uint32_t counter[4] = {(uint32_t)pos, (uint32_t)seq}, key[2] = {SEED};
    uint32_t out[4];
    philox_4x32(counter, key, out);
    return (int32_t)((uint64_t)out[0] * (uint64_t)vocab >> 32);
}

/* Text is read in a circle, from another place in each sequence. */
int32_t bench_token(const struct bench_tokens *tokens, int seq, int pos) {
    if (pos == 0 && tokens->bos >= 0) return tokens->bos;
    if (tokens->text.n == 0) return random_id(seq, pos, tokens->vocab);
    return tokens->text.ids[((size_t)seq * SEQ_STEP + (size_t)pos) % tokens->text.n];
}

const char *bench_tokens_kind(const struct bench_tokens *tokens) {
    return tokens->text.n ? "text" : "random ids";
}
