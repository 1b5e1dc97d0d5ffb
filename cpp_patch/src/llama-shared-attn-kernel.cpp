#include "llama-shared-attn-kernel.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// libllama is compiled for the least of its processors, so the tile is written with vectors of the compiler, once per
// instruction set. (ggml's vec_dot has SIMD too, but loads both sides anew for each dot product.)
#if defined(__GNUC__)
#define SHARED_ATTN_SIMD
#define SHARED_ATTN_INLINE inline __attribute__((always_inline))
#endif

bool llama_shared_attn_kernel_available(void) {
#ifdef SHARED_ATTN_SIMD
    return true;
#else
    return false;
#endif
}

bool llama_shared_attn_kernel_supported(const ggml_tensor * q, const ggml_tensor * k, ggml_type type) {
    // below this many rows per KV head the operators are as fast
    const int64_t n_rows_min = 16;

    return llama_shared_attn_kernel_available() &&
        (type == GGML_TYPE_F16 || type == GGML_TYPE_F32) &&
        (k->type == GGML_TYPE_F32 || ggml_get_type_traits(k->type)->to_float) &&
        q->ne[1]*(q->ne[2]/k->ne[2]) >= n_rows_min;
}

#ifdef SHARED_ATTN_SIMD

// positions of K that are worked on at a time: 256 KiB as f32 with heads of 128 elements
static constexpr int64_t N_BLOCK = 512;

// the rows of one KV head of one stream, token major: row = token*n_rep + head within the KV head
struct shared_attn_task {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
          ggml_tensor * probs;

    float scale;
    float max_bias;
    float softcap;

    int64_t i_head_kv;
    int64_t i_stream;
    int64_t row0;
    int64_t row1;

    int64_t n_rep()              const { return q->ne[2]/k->ne[2]; }
    int64_t token(int64_t row)   const { return row/n_rep(); }
    int64_t head(int64_t row)    const { return i_head_kv*n_rep() + row%n_rep(); }

    const float * q_row(int64_t row) const {
        return (const float *) ((const char *) q->data + token(row)*q->nb[1] + head(row)*q->nb[2] + i_stream*q->nb[3]);
    }

    const char * k_row(int64_t pos) const {
        return (const char *) k->data + pos*k->nb[1] + i_head_kv*k->nb[2] + i_stream*k->nb[3];
    }

    const char * mask_row(int64_t row, int64_t pos) const {
        return (const char *) mask->data + pos*mask->nb[0] + token(row)*mask->nb[1] + i_stream%mask->ne[3]*mask->nb[3];
    }

    char * probs_row(int64_t row, int64_t pos) const {
        return (char *) probs->data + pos*probs->nb[0] + token(row)*probs->nb[1] + head(row)*probs->nb[2] + i_stream*probs->nb[3];
    }

    float slope(int64_t row) const {
        if (max_bias <= 0.0f) {
            return 1.0f;
        }

        const uint32_t n_head_log2 = 1u << (uint32_t) std::floor(std::log2(q->ne[2]));

        return head(row) < n_head_log2
            ? std::pow(2.0f, -max_bias/n_head_log2*(head(row) + 1))
            : std::pow(2.0f, -max_bias/n_head_log2*(head(row) - n_head_log2 + 0.5f));
    }
};

static void to_f32(ggml_type type, const void * src, float * dst, int64_t n) {
    switch (type) {
        case GGML_TYPE_F32:  memcpy(dst, src, n*sizeof(float));                         break;
        case GGML_TYPE_F16:  ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) src, dst, n);  break;
        default:             ggml_get_type_traits(type)->to_float(src, dst, n);         break;
    }
}

static void from_f32(ggml_type type, const float * src, void * dst, int64_t n) {
    switch (type) {
        case GGML_TYPE_F16:  ggml_cpu_fp32_to_fp16(src, (ggml_fp16_t *) dst, n);  break;
        default:             memcpy(dst, src, n*sizeof(float));                   break;
    }
}

static bool is_masked(ggml_type type, const char * mask, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        if (type == GGML_TYPE_F16 ? ((const uint16_t *) mask)[i] != 0xfc00 : ((const float *) mask)[i] != -INFINITY) {
            return false;
        }
    }

    return true;
}

struct vec_128 { typedef float vf __attribute__((vector_size(16))); typedef int32_t vi __attribute__((vector_size(16))); };
struct vec_256 { typedef float vf __attribute__((vector_size(32))); typedef int32_t vi __attribute__((vector_size(32))); };
struct vec_512 { typedef float vf __attribute__((vector_size(64))); typedef int32_t vi __attribute__((vector_size(64))); };

// MR: rows per tile, NV: vectors of positions per tile
template <typename V, int MR, int NV>
struct shared_attn_simd {
    using vf = typename V::vf;
    using vi = typename V::vi;

    static constexpr int64_t VW      = sizeof(vf)/sizeof(float);
    static constexpr int64_t N_PANEL = NV*VW;

    static SHARED_ATTN_INLINE void load (vf & dst, const float * src) { memcpy(&dst, src, sizeof(vf)); }
    static SHARED_ATTN_INLINE void store(float * dst, const vf & src) { memcpy(dst, &src, sizeof(vf)); }

    // e^x for x <= 0, exactly 0 below what f32 can hold; a NaN stays one
    static SHARED_ATTN_INLINE void exp(const vf & x0, vf & res) {
        const vf    x     = x0 < -80.0f ? vf{} - 80.0f : x0;
        const float magic = 12582912.0f; // 1.5*2^23: adding it rounds to an integer

        const vf z = x*1.44269504f + magic;
        const vf n = z - magic;
        const vf r = (x - n*0.693359375f) + n*2.12194440e-4f;
        const vf p = 1.0f + r*(1.0f + r*(0.5f + r*(1.0f/6 + r*(1.0f/24 + r*(1.0f/120 + r*(1.0f/720))))));

        const vi bits = (vi) p + ((vi) z << 23);

        res = x0 < -80.0f ? vf{} : (vf) bits;
    }

    // panel[d][j] = k[pos + j][d], and 0 beyond n
    static SHARED_ATTN_INLINE void pack(const shared_attn_task & task, int64_t pos, int64_t n, float * rows, float * panel) {
        const int64_t n_embd_head = task.k->ne[0];

        for (int64_t j = 0; j < n; ++j) {
            to_f32(task.k->type, task.k_row(pos + j), rows + j*n_embd_head, n_embd_head);
        }
        std::fill(rows + n*n_embd_head, rows + N_PANEL*n_embd_head, 0.0f);

        for (int64_t d = 0; d < n_embd_head; ++d) {
            for (int64_t j = 0; j < N_PANEL; ++j) {
                panel[d*N_PANEL + j] = rows[j*n_embd_head + d];
            }
        }
    }

    // scores[r][j] = sum over d of q[d][r]*panel[d][j]
    static SHARED_ATTN_INLINE void tile(const float * q, const float * panel, int64_t n_embd_head, float * scores) {
        vf acc[MR][NV] = {};

        for (int64_t d = 0; d < n_embd_head; ++d) {
            for (int v = 0; v < NV; ++v) {
                vf k;
                load(k, panel + d*N_PANEL + v*VW);
                for (int r = 0; r < MR; ++r) {
                    acc[r][v] += q[d*MR + r]*k;
                }
            }
        }

        for (int r = 0; r < MR; ++r) {
            for (int v = 0; v < NV; ++v) {
                store(scores + r*N_BLOCK + v*VW, acc[r][v]);
            }
        }
    }

    // scores become e^(score - max); returns max and sum. n is a multiple of VW
    static SHARED_ATTN_INLINE void softmax(float * scores, const float * mask, float slope, float softcap, int64_t n, float & max, float & sum) {
        vf vmax = vf{} - INFINITY;
        vf vsum = {};

        for (int64_t i = 0; i < n; i += VW) {
            vf s, m;
            load(s, scores + i);
            load(m, mask   + i);
            if (softcap != 0.0f) {
                // tanh(x) = sign(x)*(1 - e)/(1 + e), e = exp(-2*|x|)
                const vf x = s/softcap;
                vf e;
                exp(-2.0f*(x < 0.0f ? -x : x), e);
                const vf t = (1.0f - e)/(1.0f + e);
                s = softcap*(x < 0.0f ? -t : t);
            }
            s += slope*m;
            vmax = s > vmax ? s : vmax;
            store(scores + i, s);
        }

        max = vmax[0];
        for (int i = 1; i < VW; ++i) {
            max = std::max(max, vmax[i]);
        }

        if (max == -INFINITY) {
            return;
        }

        for (int64_t i = 0; i < n; i += VW) {
            vf s, e;
            load(s, scores + i);
            exp(s - max, e);
            vsum += e;
            store(scores + i, e);
        }

        sum = 0.0f;
        for (int i = 0; i < VW; ++i) {
            sum += vsum[i];
        }
    }

    static SHARED_ATTN_INLINE void run(const shared_attn_task & task) {
        const int64_t n_embd_head = task.k->ne[0];
        const int64_t n_kv        = task.k->ne[1];
        const int64_t n_rows      = task.row1 - task.row0;
        const int64_t n_block     = (n_kv + N_BLOCK - 1)/N_BLOCK;

        std::vector<float> panels (N_BLOCK*n_embd_head);
        std::vector<float> k_rows (N_PANEL*n_embd_head);
        std::vector<float> q_tile (n_embd_head*MR);
        std::vector<float> scores (MR*N_BLOCK);
        std::vector<float> mask   (N_BLOCK);

        // of each row: the maximum of each block, of all so far, and the sum relative to that
        std::vector<float> max_block(n_rows*n_block, -INFINITY);
        std::vector<float> max      (n_rows, -INFINITY);
        std::vector<float> sum      (n_rows, 0.0f);

        for (int64_t ib = 0; ib < n_block; ++ib) {
            const int64_t pos0 = ib*N_BLOCK;
            const int64_t n    = std::min(N_BLOCK, n_kv - pos0);
            const int64_t n_up = (n + N_PANEL - 1)/N_PANEL*N_PANEL;

            bool packed = false;

            for (int64_t ir = 0; ir < n_rows; ir += MR) {
                const int64_t n_tile = std::min<int64_t>(MR, n_rows - ir);

                bool masked = true;
                for (int64_t r = 0; r < n_tile && masked; ++r) {
                    masked = is_masked(task.mask->type, task.mask_row(task.row0 + ir + r, pos0), n);
                }
                if (masked) {
                    continue;
                }

                if (!packed) {
                    for (int64_t i = 0; i < n_up; i += N_PANEL) {
                        pack(task, pos0 + i, std::min(N_PANEL, n - i), k_rows.data(), panels.data() + i*n_embd_head);
                    }
                    packed = true;
                }

                for (int64_t r = 0; r < n_tile; ++r) {
                    const float * q_row = task.q_row(task.row0 + ir + r);
                    for (int64_t d = 0; d < n_embd_head; ++d) {
                        q_tile[d*MR + r] = q_row[d]*task.scale;
                    }
                }

                for (int64_t i = 0; i < n_up; i += N_PANEL) {
                    tile(q_tile.data(), panels.data() + i*n_embd_head, n_embd_head, scores.data() + i);
                }

                for (int64_t r = 0; r < n_tile; ++r) {
                    const int64_t row = task.row0 + ir + r;

                    if (r == 0 || task.token(row) != task.token(row - 1)) {
                        to_f32(task.mask->type, task.mask_row(row, pos0), mask.data(), n);
                        std::fill(mask.begin() + n, mask.end(), -INFINITY);
                    }

                    float & max_b = max_block[(ir + r)*n_block + ib];
                    float   sum_b = 0.0f;

                    softmax(scores.data() + r*N_BLOCK, mask.data(), task.slope(row), task.softcap, n_up, max_b, sum_b);
                    if (max_b == -INFINITY) {
                        continue;
                    }

                    from_f32(task.probs->type, scores.data() + r*N_BLOCK, task.probs_row(row, pos0), n);

                    const float max_new = std::max(max[ir + r], max_b);
                    sum[ir + r] = sum[ir + r]*expf(max[ir + r] - max_new) + sum_b*expf(max_b - max_new);
                    max[ir + r] = max_new;
                }
            }
        }

        // the blocks of a row are relative to their own maximum: bring them to that of the row, and the sum to 1
        for (int64_t ir = 0; ir < n_rows; ++ir) {
            const int64_t row = task.row0 + ir;

            if (task.sinks) {
                const float sink    = ((const float *) task.sinks->data)[task.head(row)];
                const float max_new = std::max(max[ir], sink);
                sum[ir] = sum[ir]*expf(max[ir] - max_new) + expf(sink - max_new);
                max[ir] = max_new;
            }

            for (int64_t ib = 0; ib < n_block; ++ib) {
                const int64_t pos0  = ib*N_BLOCK;
                const int64_t n     = std::min(N_BLOCK, n_kv - pos0);
                const float   max_b = max_block[ir*n_block + ib];

                char * probs = task.probs_row(row, pos0);

                if (max_b == -INFINITY) {
                    memset(probs, 0, n*ggml_type_size(task.probs->type));
                    continue;
                }

                const float factor = expf(max_b - max[ir])/sum[ir];

                to_f32(task.probs->type, probs, scores.data(), n);
                for (int64_t i = 0; i < n; ++i) {
                    scores[i] *= factor;
                }
                from_f32(task.probs->type, scores.data(), probs, n);
            }
        }
    }
};

#if defined(__x86_64__)
__attribute__((target("avx512f")))  static void run_avx512(const shared_attn_task & task) { shared_attn_simd<vec_512, 12, 2>::run(task); }
__attribute__((target("avx2,fma"))) static void run_avx2  (const shared_attn_task & task) { shared_attn_simd<vec_256,  6, 2>::run(task); }
#endif
static                                     void run_any   (const shared_attn_task & task) { shared_attn_simd<vec_128,  4, 2>::run(task); }

static void run(const shared_attn_task & task) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        run_avx512(task);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        run_avx2(task);
        return;
    }
#endif
    run_any(task);
}

// as ggml's own operators keep them: ggml_custom leaves the end of op_params free
static float * op_params(ggml_tensor * t) {
    return (float *) t->op_params + GGML_MAX_OP_PARAMS/sizeof(float) - 3;
}

static void shared_attn_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(userdata);

    shared_attn_task task = {
        /*.q         =*/ dst->src[0],
        /*.k         =*/ dst->src[1],
        /*.mask      =*/ dst->src[2],
        /*.sinks     =*/ dst->src[3],
        /*.probs     =*/ dst,
        /*.scale     =*/ op_params(dst)[0],
        /*.max_bias  =*/ op_params(dst)[1],
        /*.softcap   =*/ op_params(dst)[2],
        /*.i_head_kv =*/ 0,
        /*.i_stream  =*/ 0,
        /*.row0      =*/ 0,
        /*.row1      =*/ 0,
    };

    const int64_t n_head_kv = task.k->ne[2];
    const int64_t n_groups  = n_head_kv*task.k->ne[3];
    const int64_t n_rows    = task.q->ne[1]*task.n_rep();

    // as few parts of a KV head as keep all threads busy: each part converts K anew
    int64_t n_parts = 1;
    while (n_groups*n_parts % nth != 0 && n_groups*n_parts < 4*nth) {
        n_parts++;
    }

    for (int64_t i = ith; i < n_groups*n_parts; i += nth) {
        const int64_t i_group = i/n_parts;
        const int64_t i_part  = i%n_parts;

        task.i_head_kv = i_group%n_head_kv;
        task.i_stream  = i_group/n_head_kv;
        task.row0      = n_rows*(i_part    )/n_parts;
        task.row1      = n_rows*(i_part + 1)/n_parts;

        run(task);
    }
}

#endif // SHARED_ATTN_SIMD

ggml_tensor * llama_shared_attn_kernel(
        ggml_context * ctx,
        ggml_tensor  * q,
        ggml_tensor  * k,
        ggml_tensor  * mask,
        ggml_tensor  * sinks,
               float   scale,
               float   max_bias,
               float   softcap,
           ggml_type   type) {
#ifdef SHARED_ATTN_SIMD
    ggml_tensor * args[] = { q, k, mask, sinks };

    ggml_tensor * probs = ggml_custom_4d(ctx, type, k->ne[1], q->ne[1], q->ne[2], q->ne[3], args, sinks ? 4 : 3,
            shared_attn_compute, GGML_N_TASKS_MAX, nullptr);

    op_params(probs)[0] = scale;
    op_params(probs)[1] = max_bias;
    op_params(probs)[2] = softcap;

    return probs;
#else
    GGML_ABORT("llama_shared_attn_kernel_supported() says no");
#endif
}
