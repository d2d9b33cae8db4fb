/* Fuzzes every kernel through the C interface, by what kernels.def says of its arguments (`make fuzz-kernels`).
 *
 * An input is a row, lengths, options, and how arrays are to be filled: normal numbers, whole ones, or any bits, NaN
 * and denormals among them. The row's text is read as the bridge reads it: lengths of arrays follow from it. The kernel
 * then runs on every instruction set of the machine, undivided and divided among some threads, last part first, and
 * must write the same bits each time (a NaN is a NaN), no matter where in their cache lines arrays lie, to nothing
 * else, and leave alone what it reads. AddressSanitizer looks at where it reads; each array ends where its memory does.
 *
 * This file stands in for csrc/parallel.c: parts are done one after the other. */
#include "../../csrc/dispatch.c" /* whose variant in use is set here: asking the CPU each time takes longer than kernels */

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

static void fail(const char *row, const char *what)
{
    fprintf(stderr, "%s: %s\n", row, what);
    abort();
}

/* ---- In place of the thread pool ------------------------------------------------------------------------------ */

static unsigned parts = 1;

void fastopt_parallel(fastopt_part_fn *part, const void *work, unsigned count, int wake)
{
    (void)count, (void)wake;
    for (unsigned i = parts; i-- > 0;)
        part(work, (struct fastopt_share){i, parts});
}

void fastopt_begin_program(void)
{
}

void fastopt_end_program(void)
{
}

unsigned fastopt_own_threads(void)
{
    return FASTOPT_MAX_THREADS;
}

/* ---- The input ------------------------------------------------------------------------------------------------ */

static const uint8_t *input;
static size_t input_left;

/* The next byte; at the end of the input, 0. */
static unsigned next_byte(void)
{
    return input_left ? (--input_left, *input++) : 0;
}

static uint64_t next_word(int bytes)
{
    uint64_t value = 0;
    while (bytes-- > 0)
        value = value << 8 | next_byte();
    return value;
}

#define PICK(...) (pick((const double[]){__VA_ARGS__}, sizeof((const double[]){__VA_ARGS__}) / sizeof(double)))
static double pick(const double *of, size_t count)
{
    return of[next_byte() % count];
}

/* Any number, the ones that programs use more often than others. */
static double any_double(void)
{
    double value;
    const uint64_t bits = next_byte() % 4 ? 0 : next_word(8);
    memcpy(&value, &bits, sizeof value);
    return bits && isfinite(value) ? value : PICK(0, 1, 0.5, 0.3, 2, -1, -0.25, 1e-3, 1e3, 1e-8);
}

/* Of what arrays are filled with: xorshift. */
static uint64_t random_state;

static uint64_t draw(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

enum filling { NORMAL, WHOLE, BITS, EQUAL, FILLINGS };
static enum filling filling;

static double draw_double(void)
{
    static const double special[] = {0.0, -0.0, INFINITY, -INFINITY, NAN, 1e-310, -1e-40, 1.7e308, 3.4e38, 1e-30};
    const uint64_t bits = draw();
    double value;
    switch (filling) {
    case WHOLE:
        return (double)(bits % 19) - 9;
    case EQUAL:
        return 0.75;
    case BITS:
        memcpy(&value, &bits, sizeof value);
        return bits % 8 ? value : special[bits / 8 % (sizeof special / sizeof *special)];
    default: {
        static const double scales[] = {0.125, 0.25, 0.5, 1, 2, 4, 8, 16};
        return ((double)(bits >> 11) * 0x1p-53 - 0.5) * scales[bits % 8];
    }
    }
}

static float draw_float(void)
{
    const uint32_t bits = (uint32_t)(draw() >> 20);
    float value;
    if (filling != BITS || bits % 8 == 0)
        return (float)draw_double();
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- A row, read ---------------------------------------------------------------------------------------------- */

enum { NAME = 40, MOST = 24 };

struct array {
    char type[NAME], name[NAME], in_place[NAME], shape[400];
    int written, optional;
};

struct number {
    char type[NAME], name[NAME];
};

struct row {
    const char *name;
    struct array arrays[FASTOPT_MAX_ARRAYS];
    struct number numbers[MOST];
    int array_count, number_count, images; /* whether it is of images, whose height and width are small */
};

static const char *skip(const char *at)
{
    while (*at == ' ')
        ++at;
    return at;
}

static const char *word_at(const char *at, char *word)
{
    size_t n = 0;
    for (at = skip(at); isalnum((unsigned char)*at) || *at == '_'; ++at)
        if (n + 1 < NAME)
            word[n++] = *at;
    word[n] = 0;
    return skip(at);
}

/* What stands in parentheses, which begin here. */
static const char *inside(const char *at, char *text, size_t room)
{
    int depth = 0;
    size_t n = 0;
    do {
        depth += (*at == '(') - (*at == ')');
        if (depth && !(depth == 1 && *at == '(') && n + 1 < room)
            text[n++] = *at;
        ++at;
    } while (depth);
    text[n] = 0;
    return skip(at);
}

/* Whether a name is one of some words, with a space between them. */
static int is(const char *name, const char *words)
{
    for (const char *at = words; *at;) {
        const char *letter = name;
        while (*letter && *letter == *at)
            ++letter, ++at;
        if (!*letter && (*at == ' ' || !*at))
            return 1;
        while (*at && *at != ' ')
            ++at;
        while (*at == ' ')
            ++at;
    }
    return 0;
}

static void read_row(struct row *row, const struct fastopt_layer_row *of)
{
    row->name = of->name;
    for (const char *at = of->arguments; *at;) {
        char type[NAME], word[NAME];
        at = word_at(at, type);
        const int written = strcmp(type, "const") != 0;
        if (!written)
            at = word_at(at, type);
        do {
            if (*at == ',')
                at = skip(at + 1);
            if (*at != '*') {
                struct number *number = &row->numbers[row->number_count++];
                strcpy(number->type, type);
                at = word_at(at, number->name);
                continue;
            }
            struct array *array = &row->arrays[row->array_count++];
            strcpy(array->type, type);
            array->written = written;
            at = word_at(at + 1, array->name);
            while (isalpha((unsigned char)*at)) {
                at = word_at(at, word);
                if (!strcmp(word, "OPTIONAL"))
                    array->optional = 1;
                else if (!strcmp(word, "IN_PLACE"))
                    at = inside(at, array->in_place, NAME);
                else
                    at = inside(at, array->shape, sizeof array->shape);
            }
        } while (*at == ',');
        if (*at == ';')
            at = skip(at + 1);
    }
    for (int i = 0; i < row->number_count; ++i)
        row->images |= is(row->numbers[i].name, "h");
    row->images |= is(row->name, "conv_pack winograd_pack");
}

static int array_named(const struct row *row, const char *name)
{
    for (int i = 0; i < row->array_count; ++i)
        if (!strcmp(row->arrays[i].name, name))
            return i;
    return -1;
}

/* ---- Numbers and lengths -------------------------------------------------------------------------------------- */

struct scope {
    char names[MOST][NAME];
    int64_t values[MOST];
    int count;
};

static int64_t *find(struct scope *scope, const char *name)
{
    for (int i = 0; i < scope->count; ++i)
        if (!strcmp(scope->names[i], name))
            return &scope->values[i];
    return NULL;
}

static void define(struct scope *scope, const char *name, int64_t value)
{
    strcpy(scope->names[scope->count], name);
    scope->values[scope->count++] = value;
}

static int unlawful; /* a length that nothing has */

static int64_t sum_at(const char **at, struct scope *scope);

static int64_t call_at(const char **at, const char *name, struct scope *scope)
{
    const struct fastopt_dimension_row *row = fastopt_dimension_rows;
    while (row->name && strcmp(row->name, name))
        ++row;
    if (!row->name)
        fail(name, "is no dimension");
    struct scope inner = {.count = 0};
    for (const char *parameter = row->parameters; *parameter && *parameter != ')';) {
        char type[NAME], word[NAME];
        parameter = word_at(word_at(parameter + 1, type), word);
        *at = skip(*at + 1);
        define(&inner, word, sum_at(at, scope));
    }
    *at = skip(*at + 1);
    const char *expression = row->expression;
    return sum_at(&expression, &inner);
}

static int64_t factor_at(const char **at, struct scope *scope)
{
    *at = skip(*at);
    if (**at == '(') {
        *at += 1;
        const int64_t value = sum_at(at, scope);
        *at = skip(*at + 1);
        return value;
    }
    char name[NAME];
    if (isdigit((unsigned char)**at)) {
        char *end;
        const int64_t value = strtoll(*at, &end, 10);
        *at = skip(end);
        return value;
    }
    *at = word_at(*at, name);
    if (**at == '(')
        return call_at(at, name, scope);
    const int64_t *value = find(scope, name);
    for (const struct fastopt_limit *limit = fastopt_limits; !value && limit->name; ++limit)
        if (!strcmp(limit->name, name))
            value = &limit->value;
    if (!value)
        fail(name, "is no number");
    return *value;
}

static int64_t product_at(const char **at, struct scope *scope)
{
    int64_t value = factor_at(at, scope);
    while (**at == '*' || **at == '/') {
        const char operation = *(*at)++;
        const int64_t by = factor_at(at, scope);
        if (operation == '*')
            value *= by;
        else if (by > 0 && value >= 0)
            value /= by;
        else
            unlawful = 1;
    }
    return value;
}

static int64_t sum_at(const char **at, struct scope *scope)
{
    int64_t value = product_at(at, scope);
    while (**at == '+' || **at == '-') {
        const int64_t sign = *(*at)++ == '+' ? 1 : -1;
        value += sign * product_at(at, scope);
    }
    return value;
}

/* The number of elements of an array of a shape. */
static int64_t elements_of(const char *shape, struct scope *scope)
{
    int64_t product = 1;
    for (const char *at = shape; *at;) {
        const int64_t length = sum_at(&at, scope);
        unlawful |= length < 0;
        while (*at == '.' || *at == ',' || *at == ' ')
            ++at;
        product *= length;
    }
    return product;
}

static int64_t any_length(int64_t most)
{
    const unsigned byte = next_byte();
    const int64_t length = byte < 216 ? byte % 36 : byte < 253 ? 4 * (byte - 216) + next_byte() % 4 : 32 * next_byte();
    return length <= most ? length : length % (most + 1);
}

/* A value for a number of a row: what the functions that call the kernel would give. */
static int64_t any_number(const struct row *row, const char *name, struct scope *scope)
{
    if (is(name, "seed counter first_block"))
        return (int64_t)next_word(8);
    if (is(name, "from"))
        return (int64_t)next_word(next_byte() % 6);
    if (is(name, "bytes"))
        return (int64_t)PICK(1, 3, 4, 8, 12, 24, 0, 2, 7);
    if (is(name, "relu reverse"))
        return next_byte() % 2;
    if (is(name, "kind"))
        return next_byte() % (strcmp(row->name, "element_loss") ? SOFTPLUS + 1 : LOSS_HUBER + 1);
    if (is(name, "epilogue"))
        return next_byte() % (strcmp(row->name, "batch_norm_inference") ? RELU_DROPOUT + 1 : RELU + 1);
    if (is(name, "threshold"))
        return next_word(3) % (DROPOUT_STEPS + 1);
    if (is(name, "size_h size_w"))
        return 1 + next_byte() % 5;
    if (is(name, "stride_h stride_w dilation_h dilation_w"))
        return 1 + next_byte() % 3;
    if (is(name, "pad_h pad_w top bottom left right"))
        return next_byte() % 4;
    if (is(name, "block"))
        return 1 + next_byte() % 9;
    if (is(name, "h w") || (is(name, "n m") && (row->images || is(row->name, "swap_axes"))))
        return next_byte() % 11;
    if (is(name, "taps"))
        return next_byte() % 26;
    if (is(name, "groups")) {
        const int64_t channels = *find(scope, "channels"), wanted = 1 + next_byte() % 40;
        return channels % wanted ? 1 : wanted;
    }
    if (is(name, "c filters") && is(row->name, "winograd_pack winograd_forward winograd_weight_grad"))
        return WINOGRAD_GRAIN * (1 + next_byte() % (WINOGRAD_CHANNELS / WINOGRAD_GRAIN));
    if (is(name, "filters") && !strcmp(row->name, "conv_weight_grad"))
        return WINOGRAD_GRAIN * (next_byte() % 9);
    if (is(name, "blocks lanes") && find(scope, "outer"))
        return 0; /* settled by sums_of_rows */
    if (row->images || is(name, "outer inner pixels width m"))
        return any_length(150);
    return any_length(9000);
}

/* Of batch norm: the blocks of rows whose sums are taken, as functional/norms.py has them. */
static void sums_of_rows(struct scope *scope, int wanted)
{
    const int64_t outer = *find(scope, "outer"), channels = *find(scope, "channels"), inner = *find(scope, "inner");
    if (!wanted || inner != 1 || outer < 1 || channels < 1 || channels >= NORM_BLOCK)
        return;
    int64_t lanes = (channels + LANES - 1) / LANES * LANES;
    if (channels < LANES)
        for (lanes = channels; lanes % LANES;)
            lanes += channels;
    *find(scope, "lanes") = lanes;
    *find(scope, "blocks") = outer / (channels < LANES ? lanes / channels : 1) / NORM_BLOCK + 1;
}

/* Whether numbers are as the functions that call the kernel see to. */
static int is_lawful(const struct row *row, struct scope *scope)
{
#define VALUE(name) (*find(scope, #name))
    const char *name = row->name;
    if (is(name, "conv_forward conv_weight_grad")) {
        const int64_t out_w = windows(VALUE(w), VALUE(size_w), VALUE(stride_w), VALUE(pad_w), 1);
        const int64_t width = maximum(((out_w - 1) * VALUE(stride_w) + VALUE(size_w)) * VALUE(c),
                                      (VALUE(w) + VALUE(size_w) - 1) * VALUE(filters));
        return VALUE(size_h) <= MAX_KERNEL_ROWS && VALUE(size_h) * width <= SCRATCH;
    }
    if (is(name, "softmax_cross_entropy softmax_loss hinge_loss count_right softmax_forward softmax_backward"))
        return (find(scope, "classes") ? VALUE(classes) : VALUE(columns)) > 0;
    if (is(name, "batch_norm_sums batch_norm_grad_sums"))
        return VALUE(blocks) > 0;
    if (is(name, "embedding_backward"))
        return VALUE(entries) > 0 || VALUE(places) == 0;
    return 1;
}

static void give(const struct row *row, int *given, const char *name, int whether)
{
    const int i = array_named(row, name);
    if (i >= 0)
        given[i] = whether;
}

/* Which optional arrays there are. */
static void choose_arrays(const struct row *row, struct scope *scope, int *given)
{
    const unsigned choice = next_byte();
    for (int i = 0; i < row->array_count; ++i)
        given[i] = !row->arrays[i].optional || choice >> i % 8 & 1;
    if (find(scope, "outer") && find(scope, "blocks")) {
        const int sums = array_named(row, "sums");
        sums_of_rows(scope, choice >> 7 || !row->arrays[sums].optional);
        given[sums] = *find(scope, "blocks") > 0;
        give(row, given, "running_var",
             array_named(row, "running_mean") >= 0 && given[array_named(row, "running_mean")]);
        if (!strcmp(row->name, "batch_norm_backward") || !strcmp(row->name, "batch_norm_grad_sums")) {
            give(row, given, "y", *find(scope, "epilogue") == RELU_DROPOUT);
            give(row, given, "dx", 1);
        }
    }
    if (!strcmp(row->name, "batch_norm_max_pool_forward")) {
        const int training = choice >> 7;
        give(row, given, "mean", training);
        give(row, given, "inv_std", training);
        give(row, given, "running_mean", !training);
        give(row, given, "running_var", !training);
        give(row, given, "chosen", training);
    }
    if (!strcmp(row->name, "softmax_loss")) {
        give(row, given, "targets", choice & 1);
        give(row, given, "labels", !(choice & 1));
        give(row, given, "mass", given[array_named(row, "class_weight")]);
    }
    if (!strcmp(row->name, "stream")) {
        give(row, given, "b", choice % 4 > 0);
        give(row, given, "c", choice % 4 > 1);
        give(row, given, "d", choice % 4 > 2);
    }
}

/* ---- Arrays --------------------------------------------------------------------------------------------------- */

/* Guards stand before an array, and behind it where AddressSanitizer does not look: else it ends where memory does. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BEHIND 0
#endif
#endif
#ifndef BEHIND
#define BEHIND 64
#endif

enum { GUARD = 0xa5 };

/* An array that begins `offset` bytes behind a boundary of 16. */
struct memory {
    unsigned char *all, *array;
    size_t offset, bytes;
};

static struct memory take(size_t bytes, size_t offset)
{
    unsigned char *all = malloc(offset + bytes + BEHIND + (offset + bytes == 0));
    if (!all)
        abort();
    memset(all, GUARD, offset);
    memset(all + offset + bytes, GUARD, BEHIND);
    return (struct memory){all, all + offset, offset, bytes};
}

static struct memory copy_of(struct memory from, size_t offset)
{
    const struct memory copy = take(from.bytes, offset);
    memcpy(copy.array, from.array, from.bytes);
    return copy;
}

static void release(const char *row, struct memory memory)
{
    for (size_t i = 0; i < memory.offset; ++i)
        if (memory.all[i] != GUARD)
            fail(row, "wrote before an array");
    for (size_t i = 0; i < BEHIND; ++i)
        if (memory.array[memory.bytes + i] != GUARD)
            fail(row, "wrote behind an array");
    free(memory.all);
}

static size_t size_of_type(const char *type, enum fastopt_real real)
{
    if (is(type, "real signed_word"))
        return real == FASTOPT_FLOAT ? 4 : 8;
    return is(type, "uint8_t") ? 1 : is(type, "uint32_t") ? 4 : 8;
}

static void fill(struct memory to, const char *type, enum fastopt_real real, int64_t limit)
{
    const size_t size = size_of_type(type, real), n = to.bytes / size;
    for (size_t i = 0; i < n; ++i) {
        unsigned char *at = to.array + i * size;
        if (is(type, "double") || (is(type, "real") && real == FASTOPT_DOUBLE))
            memcpy(at, &(double){draw_double()}, size);
        else if (is(type, "real"))
            memcpy(at, &(float){draw_float()}, size);
        else {
            const uint64_t bits = draw(), any = limit ? bits % (uint64_t)limit : bits;
            memcpy(at, &any, size);
        }
    }
}

static int same_reals(const char *type, enum fastopt_real real, struct memory a, struct memory b)
{
#ifdef UNDER_VALGRIND /* which has no mode that makes denormals zeros */
    return 1;
#endif
    if (!memcmp(a.array, b.array, a.bytes))
        return 1;
    const int wide = is(type, "double") || real == FASTOPT_DOUBLE;
    if (!is(type, "double real"))
        return 0;
    for (size_t i = 0; i < a.bytes; i += wide ? 8 : 4) {
        double x, y;
        float s, t;
        if (!memcmp(a.array + i, b.array + i, wide ? 8 : 4))
            continue;
        if (wide) {
            memcpy(&x, a.array + i, 8);
            memcpy(&y, b.array + i, 8);
        } else {
            memcpy(&s, a.array + i, 4);
            memcpy(&t, b.array + i, 4);
            x = s, y = t;
        }
        if (!(isnan(x) && isnan(y))) {
            fprintf(stderr, "element %zu: %.17g and %.17g\n", i / (wide ? 8 : 4), x, y);
            return 0;
        }
    }
    return 1;
}

/* ---- Layers --------------------------------------------------------------------------------------------------- */

enum { ROWS = 200 };
static struct row rows[ROWS];
static int64_t most_elements; /* few, as a rule: what has to do with size begins at some hundred */
static size_t layer_count, step_count;

/* The instruction sets, the strongest one first, undivided; and one of them with the work in so many parts. */
static int next_way(int way, unsigned divided)
{
    static const struct fastopt_variant *supported[8];
    static int count;
    for (const struct fastopt_variant *variant = fastopt_variants; !active && variant->name; ++variant)
        if (variant->supported())
            supported[count++] = variant;
    if (way > count)
        return 0;
    active = supported[way < count ? way : (int)divided % count];
    parts = way < count ? 1 : divided;
    return 1;
}

static void fuzz_layer(size_t number, enum fastopt_real real)
{
    const struct row *row = &rows[number];
    struct scope scope = {.count = 0};
    double doubles[MOST];
    int given[FASTOPT_MAX_ARRAYS], double_count = 0;
    for (int i = 0; i < row->number_count; ++i) {
        const struct number *of = &row->numbers[i];
        if (strcmp(of->type, "double"))
            define(&scope, of->name, any_number(row, of->name, &scope));
        else {
            const double value = any_double();
            doubles[double_count++] = is(of->name, "eps delta margin least") ? fabs(value)
                                      : is(of->name, "smoothing")            ? fmod(fabs(value), 1)
                                                                             : value;
        }
    }
    choose_arrays(row, &scope, given);
    unlawful = 0;
    int64_t elements[FASTOPT_MAX_ARRAYS], all = 0;
    for (int i = 0; i < row->array_count; ++i) {
        elements[i] = elements_of(row->arrays[i].shape, &scope);
        if (unlawful || elements[i] > most_elements)
            return;
        all += elements[i];
    }
    if (all > most_elements || !is_lawful(row, &scope))
        return;

    const unsigned offsets = next_byte(), alias = next_byte() % 2, divided = 2 + next_byte() % 5;
    struct memory content[FASTOPT_MAX_ARRAYS], first[FASTOPT_MAX_ARRAYS];
    int same_as[FASTOPT_MAX_ARRAYS];
    for (int i = 0; i < row->array_count; ++i) {
        const struct array *array = &row->arrays[i];
        int64_t limit = 0;
        if (is(array->name, "labels"))
            limit = *find(&scope, "classes") + (filling == BITS);
        else if (is(array->name, "entry"))
            limit = *find(&scope, "entries");
        else if (is(array->name, "partner"))
            limit = *find(&scope, "n") + 1;
        else if (is(array->name, "row column"))
            limit = *find(&scope, is(array->name, "row") ? "h" : "w") + 1; /* one of them is no pixel */
        else if (is(array->name, "winner"))
            limit = *find(&scope, "size_h") * *find(&scope, "size_w");
        content[i] = take((size_t)elements[i] * size_of_type(array->type, real), 0);
        fill(content[i], array->type, real, limit);
        same_as[i] = alias && array->in_place[0] ? array_named(row, array->in_place) : -1;
        if (same_as[i] >= 0)
            memcpy(content[i].array, content[same_as[i]].array, content[i].bytes);
    }

    for (int way = 0; next_way(way, divided); ++way) {
        struct memory copies[FASTOPT_MAX_ARRAYS];
        struct fastopt_item item = {
            .kind = FASTOPT_CALL, .when = FASTOPT_EACH, .real = real, .row = number, .bytes = (size_t)1 << 40};
        item.moving = -1;
        int at = 0;
        for (int i = row->array_count - 1; i >= 0; --i) { /* those that are written come last */
            const size_t size = size_of_type(row->arrays[i].type, real);
            const size_t offset = (offsets * (unsigned)(i + 1) + (unsigned)way * 7) % (64 / size) * size;
            copies[i] = copy_of(content[i], offset);
        }
        for (int i = 0; i < row->array_count; ++i, ++at) {
            const struct memory *memory = &copies[i];
            item.arguments[at] = given[i] ? (int64_t)(uintptr_t)memory->array : 0;
            for (int k = 0; k < i; ++k)
                if (same_as[i] == k)
                    item.arguments[at] = item.arguments[k]; /* of an array that is read */
        }
        for (int i = 0; i < scope.count; ++i)
            item.arguments[at++] = scope.values[i];
        memcpy(&item.arguments[at], doubles, (size_t)double_count * sizeof(double));
        const struct fastopt_leg leg = {.items = &item, .end = 1, .rows = 1, .batches = 1, .every = 1};
        struct fastopt_stop stop;
        if (!fastopt_run_program(&leg, 1, 1, 1, &stop))
            fail(row->name, "was stopped");
        for (int i = 0; i < row->array_count; ++i) {
            int written = row->arrays[i].written;
            for (int k = 0; k < row->array_count; ++k)
                written |= same_as[k] == i;
            if (way == 0 && written)
                first[i] = copy_of(copies[i], 0);
            if (!same_reals(row->arrays[i].type, real, copies[i], written ? first[i] : content[i])) {
                fprintf(stderr, "%s with %u parts, %s, %s\n", active->name, parts, real ? "double" : "float",
                        row->arrays[i].name);
                for (int k = 0; k < scope.count; ++k)
                    fprintf(stderr, "%s = %lld\n", scope.names[k], (long long)scope.values[k]);
                fail(row->name, written ? "other bits" : "changed what it reads");
            }
            release(row->name, copies[i]);
        }
    }
    for (int i = 0; i < row->array_count; ++i) {
        int written = row->arrays[i].written;
        for (int k = 0; k < row->array_count; ++k)
            written |= same_as[k] == i;
        if (written)
            release(row->name, first[i]);
        release(row->name, content[i]);
    }
}

/* ---- Steps ---------------------------------------------------------------------------------------------------- */

/* The names in parentheses, separated by commas. */
static int names_in(const char *text, char names[][NAME], int count)
{
    for (const char *at = text + 1; *at && *at != ')'; ++count) {
        at = word_at(at, names[count]);
        if (*at == ',')
            ++at;
    }
    return count;
}

static double any_hyper(const char *name)
{
    if (is(name, "t"))
        return 1 + (double)next_word(next_byte() % 4);
    if (is(name, "maximize decoupled nesterov lr_in_velocity at_look_ahead average bias_correction corrected_max "
                 "decay_outside root eps_root"))
        return next_byte() % 2;
    if (is(name, "eps_mode"))
        return next_byte() % (EPS_HAT + 1);
    if (is(name, "clip_value max_norm"))
        return PICK(HUGE_VAL, HUGE_VAL, 1, 0.5, 0, 1e-3, 100);
    if (is(name, "l1 weight_decay"))
        return PICK(0, 0, 0.01, 0.1, 1, 1e-4);
    if (is(name, "beta1 beta2 beta momentum decay momentum_decay average_weight"))
        return PICK(0, 0.9, 0.99, 0.999, 0.5, 0.25, 1 - 0x1p-20);
    if (is(name, "grad_scale"))
        return PICK(1, 1, 0.5, 1e-3, 0, 3);
    if (is(name, "eps"))
        return PICK(0, 1e-8, 1e-3, 1, 1e-30);
    return fabs(any_double());
}

static void fuzz_step(size_t number, enum fastopt_real real)
{
    enum { TENSORS = 3, ARRAYS = 2 + FASTOPT_MAX_STATES };
    const struct fastopt_step_row *row = &fastopt_step_rows[number];
    char hypers[MOST][NAME], states[FASTOPT_MAX_STATES][NAME];
    int hyper_count = names_in(fastopt_every_step, hypers, 0);
    hyper_count = names_in(row->hypers, hypers, hyper_count);
    const int arrays = 2 + names_in(row->states, states, 0);
    for (const struct fastopt_scalars_row *scalars = fastopt_scalars_rows; scalars->name; ++scalars)
        if (!strcmp(scalars->name, row->name))
            hyper_count = names_in(scalars->scalars, hypers, hyper_count);
    double hyper[FASTOPT_MAX_HYPERS] = {0}, first_hyper[FASTOPT_MAX_HYPERS] = {0};
    for (int i = 0; i < hyper_count; ++i)
        hyper[i] = any_hyper(hypers[i]);
    const size_t count = next_byte() % (TENSORS + 1), real_size = real == FASTOPT_FLOAT ? 4 : 8;
    const unsigned divided = 2 + next_byte() % 5, offsets = next_byte();
    struct memory content[TENSORS][ARRAYS], first[TENSORS][ARRAYS];
    size_t n[TENSORS], columns[TENSORS], blocks = 0;
    double grad_scale[TENSORS], first_sums[TENSORS][FASTOPT_SUMS];
    for (size_t i = 0; i < count; ++i) {
        n[i] = (size_t)any_length(most_elements > 9000 ? 9000 : 300);
        const size_t wanted = next_byte() % 80;
        columns[i] = wanted && n[i] % wanted == 0 ? wanted : 0;
        grad_scale[i] = PICK(1, 0.5, 3);
        blocks += fastopt_blocks(n[i]);
        for (int k = 0; k < arrays; ++k) {
            content[i][k] = take(n[i] * real_size, 0);
            fill(content[i][k], "real", real, 0);
        }
    }
    for (int way = 0; next_way(way, divided); ++way) {
        struct memory copies[TENSORS][ARRAYS];
        struct fastopt_tensor tensors[TENSORS] = {{0}};
        double own[FASTOPT_MAX_HYPERS];
        memcpy(own, hyper, sizeof own);
        for (size_t i = 0; i < count; ++i) {
            for (int k = 0; k < arrays; ++k)
                copies[i][k] = copy_of(content[i][k], (offsets * (unsigned)(k + 1) + (unsigned)way * 7) %
                                                          (64 / real_size) * real_size);
            tensors[i] = (struct fastopt_tensor){.n = n[i], .param = copies[i][0].array, .grad = copies[i][1].array};
            for (int k = 2; k < arrays; ++k)
                tensors[i].state[k - 2] = copies[i][k].array;
            tensors[i].columns = columns[i];
            tensors[i].grad_scale = grad_scale[i];
        }
        struct memory scratch = take((blocks + 1) * FASTOPT_SUMS * sizeof(double), 0);
        if (fastopt_next_scalars(number, own))
            fastopt_run_step(number, real, tensors, count, own, (double *)(void *)scratch.array);
        fastopt_run_sums(FASTOPT_SUMS_squares, real, tensors, count, own, (double *)(void *)scratch.array);
        release(row->name, scratch);
        if (way == 0)
            memcpy(first_hyper, own, sizeof own);
        if (memcmp(first_hyper, own, sizeof own))
            fail(row->name, "other scalars");
        for (size_t i = 0; i < count; ++i) {
            if (way == 0)
                memcpy(first_sums[i], tensors[i].sums, sizeof first_sums[i]);
            for (int k = 0; k < FASTOPT_SUMS; ++k)
                if (memcmp(&first_sums[i][k], &tensors[i].sums[k], 8) && !isnan(tensors[i].sums[k] + first_sums[i][k]))
                    fail(row->name, "other sums");
            for (int k = 0; k < arrays; ++k) {
                const int written = k != 1;
                if (way == 0 && written)
                    first[i][k] = copy_of(copies[i][k], 0);
                if (!same_reals("real", real, copies[i][k], written ? first[i][k] : content[i][k])) {
                    fprintf(stderr, "%s with %u parts, %s, array %d of %zu elements\n", active->name, parts,
                            real ? "double" : "float", k, n[i]);
                    for (int h = 0; h < hyper_count; ++h)
                        fprintf(stderr, "%s = %.17g\n", hypers[h], hyper[h]);
                    fail(row->name, written ? "other bits" : "changed the gradient");
                }
                release(row->name, copies[i][k]);
            }
        }
    }
    for (size_t i = 0; i < count; ++i)
        for (int k = 0; k < arrays; ++k) {
            if (k != 1)
                release(row->name, first[i][k]);
            release(row->name, content[i][k]);
        }
}

/* ---- What libFuzzer calls ------------------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!layer_count) {
        for (; fastopt_layer_rows[layer_count].name; ++layer_count)
            read_row(&rows[layer_count], &fastopt_layer_rows[layer_count]);
        while (fastopt_step_rows[step_count].name)
            ++step_count;
    }
    input = data;
    input_left = size;
    const size_t number = next_byte() % (layer_count + step_count);
    const enum fastopt_real real = next_byte() % 2 ? FASTOPT_DOUBLE : FASTOPT_FLOAT;
    const unsigned choice = next_byte();
    filling = choice % FILLINGS;
    most_elements = choice >= 240 ? 40000 : 3000;
    random_state = next_word(2) * 0x9e3779b97f4a7c15u + 1;
    if (number < layer_count)
        fuzz_layer(number, real);
    else
        fuzz_step(number - layer_count, real);
    return 0;
}
