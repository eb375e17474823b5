#include "base/build_id.h"

#include <elf.h>
#include <link.h>
#include <string.h>
#include "base/text.h"

static size_t padded(size_t bytes) {
    return (bytes + 3) & ~(size_t)3;
}

/* Notes follow one another: a head, a name, a description, each padded to four bytes. */
static void read_notes(const char *at, size_t size, char *text) {
    for (ElfW(Nhdr) note; size >= sizeof note;) {
        memcpy(&note, at, sizeof note);
        size_t name = padded(note.n_namesz), bytes = sizeof note + name + padded(note.n_descsz);
        if (bytes > size) return;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && !memcmp(at + sizeof note, "GNU", 4)) {
            size_t n = note.n_descsz < BUILD_ID_BYTES / 2 ? note.n_descsz : BUILD_ID_BYTES / 2;
            text_print_hex(at + sizeof note + name, n, text);
            return;
        }
        at += bytes;
        size -= bytes;
    }
}

/* The program itself comes first; the libraries behind it are others' business. */
static int read_program(struct dl_phdr_info *info, size_t size, void *text) {
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type == PT_NOTE) read_notes((const char *)info->dlpi_addr + part->p_vaddr, part->p_memsz, text);
    }
    return 1;
}

const char *build_id(char text[BUILD_ID_BYTES]) {
    *text = 0;
    dl_iterate_phdr(read_program, text);
    return text;
}
