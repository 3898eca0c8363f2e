/* launch.h for tests of plugins/svdq_linear/run.py: writes down what it is given. */
#include "launch.h"

#include <stdio.h>
#include <string.h>

static char said[2000];

char const* stand_in_said(void) { return said; }

#define FIELD(struct, field) \
    if (!strcmp(name, #field)) return offsetof(struct, field)
size_t stand_in_layer(char const* name) {
    FIELD(SvdqLayer, n);
    FIELD(SvdqLayer, k);
    FIELD(SvdqLayer, rank);
    FIELD(SvdqLayer, group_size);
    FIELD(SvdqLayer, act_bits);
    FIELD(SvdqLayer, act_signed);
    FIELD(SvdqLayer, activation);
    FIELD(SvdqLayer, dtype);
    FIELD(SvdqLayer, act_shift);
    return sizeof(SvdqLayer);
}
size_t stand_in_constants(char const* name) {
    FIELD(SvdqConstants, qweight);
    FIELD(SvdqConstants, wscale);
    FIELD(SvdqConstants, inv_smooth);
    FIELD(SvdqConstants, down);
    FIELD(SvdqConstants, up);
    FIELD(SvdqConstants, bias);
    return sizeof(SvdqConstants);
}

char const* svdq_status_text(int32_t status) { return status == SVDQ_BAD_ARGUMENT ? "bad argument" : "other"; }
int32_t svdq_check_layer(SvdqLayer const* l) { return l->k % 8 ? SVDQ_BAD_LAYER : SVDQ_OK; }
int32_t svdq_tile_count(void) { return 3; }
char const* svdq_tile_name(int32_t tile) { return tile == 0 ? "few" : tile == 1 ? "many" : "gemv"; }
int32_t svdq_tile_valid(SvdqLayer const* l, int64_t m, int32_t tile) { return tile == 2 ? l->act_bits == 16 : m > 4 || tile == 0; }
int32_t svdq_default_tile(SvdqLayer const* l, int64_t m) { return l && m > 4; }
size_t svdq_workspace_bytes(SvdqLayer const* l, int64_t m) { return (size_t)m * l->k; }
int32_t svdq_prepare(void) { return SVDQ_OK; }

static int32_t write_down(char const* name, SvdqLayer const* l, SvdqConstants const* c, void const* x, void const* y, int64_t m,
                          int32_t tile, void* workspace, size_t bytes, void* stream) {
    snprintf(said, sizeof said, "%s n%d k%d r%d g%d a%d s%d f%d t%d shift%g | %d%d%d%d%d%d | x%d y%d m%lld tile%d w%d %zu stream%zx",
             name, l->n, l->k, l->rank, l->group_size, l->act_bits, l->act_signed, l->activation, l->dtype, l->act_shift,
             !!c->qweight, !!c->wscale, !!c->inv_smooth, !!c->down, !!c->up, !!c->bias, !!x, !!y, (long long)m, tile,
             !!workspace, bytes, (size_t)stream);
    return tile < 0 || tile > 2 ? SVDQ_BAD_ARGUMENT : SVDQ_OK;
}
int32_t svdq_enqueue(SvdqLayer const* l, SvdqConstants const* c, void const* x, void* y, int64_t m, int32_t tile, void* w,
                     size_t b, void* s) {
    return write_down("both", l, c, x, y, m, tile, w, b, s);
}
int32_t svdq_enqueue_quantize(SvdqLayer const* l, SvdqConstants const* c, void const* x, int64_t m, int32_t tile, void* w,
                              size_t b, void* s) {
    return write_down("quantize", l, c, x, NULL, m, tile, w, b, s);
}
int32_t svdq_enqueue_multiply(SvdqLayer const* l, SvdqConstants const* c, void const* x, void* y, int64_t m, int32_t tile, void* w,
                              size_t b, void* s) {
    return write_down("multiply", l, c, x, y, m, tile, w, b, s);
}
