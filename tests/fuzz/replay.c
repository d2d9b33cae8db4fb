/* Gives the inputs of a file, one per line in hexadecimal digits, to what libFuzzer would give them to: for valgrind,
 * and for compilers without libFuzzer. */
#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "r") : NULL;
    static char line[1 << 16];
    unsigned inputs = 0;
    if (!file)
        return 2;
    while (fgets(line, sizeof line, file)) {
        size_t size = 0;
        uint8_t *data = malloc(sizeof line / 2);
        for (const char *at = line; data && isxdigit((unsigned char)at[0]) && isxdigit((unsigned char)at[1]); at += 2)
            data[size++] = (uint8_t)strtoul((const char[3]){at[0], at[1], 0}, NULL, 16);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
        ++inputs;
    }
    fclose(file);
    printf("%u inputs, none of which failed\n", inputs);
    return 0;
}
