// A 4-bit multiplication compiled for a GPU that has none: what the real kernels must never do.
struct Params {
    unsigned const* a;
    int* d;
};

extern "C" __global__ void svdq_emulated(const __grid_constant__ Params p) {
    unsigned const* a = p.a + 6 * threadIdx.x;
    int d[4];
    asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(0));
    p.d[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
