#pragma once

// What the attention kernels are written with: vectors of each instruction set, conversion of caches to f32, and products of
// tiles and of few rows.

#include "ggml.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

// libllama is compiled for the least of its processors, so the tile is written with vectors of the compiler, once per
// instruction set. (ggml's vec_dot has SIMD too, but loads both sides anew for each dot product.)
#if defined(__GNUC__)
#define SHARED_ATTN_SIMD
#define SHARED_ATTN_INLINE inline __attribute__((always_inline))
#define SHARED_ATTN_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define SHARED_ATTN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHARED_ATTN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{ __VA_ARGS__ })
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#endif

#ifdef SHARED_ATTN_SIMD

// positions of a KV head that few rows are multiplied with at a time
static constexpr int64_t N_GROUP = 16;

// a vector that crosses a cache line costs twice as much
template <typename T>
struct shared_attn_allocator {
    using value_type = T;

    static constexpr auto line = std::align_val_t(64);

    shared_attn_allocator() = default;
    template <typename U> shared_attn_allocator(const shared_attn_allocator<U> &) {}

    T *  allocate(size_t n)           { return (T *) ::operator new(n*sizeof(T), line); }
    void deallocate(T * p, size_t)    { ::operator delete(p, line); }

    template <typename U> bool operator==(const shared_attn_allocator<U> &) const { return true; }
    template <typename U> bool operator!=(const shared_attn_allocator<U> &) const { return false; }
};

using shared_attn_floats = std::vector<float, shared_attn_allocator<float>>;

// into the cache of the second level, as it is too much for the first; inline, as gcc leaves out the call of a function that
// does nothing but this
static SHARED_ATTN_INLINE void prefetch(const char * data, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += 64) {
        __builtin_prefetch(data + i, 0, 2);
    }
}

template <typename V, typename VF>
static SHARED_ATTN_INLINE float sum_of_halves(const VF & x) {
    typename V::vf a, b;
    memcpy(&a, (const char *) &x,             sizeof(a));
    memcpy(&b, (const char *) &x + sizeof(a), sizeof(b));
    a += b;
    return V::sum(a);
}

// f16 as the processor converts it: ggml-cpu has the same, but may be a module that libllama cannot link to
#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void f16_to_f32_avx512(const ggml_fp16_t * src, float * dst, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        _mm512_storeu_ps(dst + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *) (src + i))));
    }
    if (i < n) {
        ggml_fp16_to_fp32_row(src + i, dst + i, n - i);
    }
}

__attribute__((target("avx512f"))) static void f32_to_f16_avx512(const float * src, ggml_fp16_t * dst, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        _mm256_storeu_si256((__m256i *) (dst + i), _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
    if (i < n) {
        ggml_fp32_to_fp16_row(src + i, dst + i, n - i);
    }
}

__attribute__((target("avx,f16c"))) static void f16_to_f32_f16c(const ggml_fp16_t * src, float * dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (src + i))));
    }
    if (i < n) {
        ggml_fp16_to_fp32_row(src + i, dst + i, n - i);
    }
}

__attribute__((target("avx,f16c"))) static void f32_to_f16_f16c(const float * src, ggml_fp16_t * dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128((__m128i *) (dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
    if (i < n) {
        ggml_fp32_to_fp16_row(src + i, dst + i, n - i);
    }
}
#endif

static void f16_to_f32_any(const ggml_fp16_t * src, float * dst, int64_t n) {
#if defined(__aarch64__)
    for (int64_t i = 0; i < n; ++i) {
        dst[i] = ((const __fp16 *) src)[i];
    }
#else
    ggml_fp16_to_fp32_row(src, dst, n);
#endif
}

static void f32_to_f16_any(const float * src, ggml_fp16_t * dst, int64_t n) {
#if defined(__aarch64__)
    for (int64_t i = 0; i < n; ++i) {
        ((__fp16 *) dst)[i] = src[i];
    }
#else
    ggml_fp32_to_fp16_row(src, dst, n);
#endif
}

struct vec_128 {
    typedef float   vf __attribute__((vector_size(16)));
    typedef int32_t vi __attribute__((vector_size(16)));
    static SHARED_ATTN_INLINE float sum(const vf & x) { return (x[0] + x[1]) + (x[2] + x[3]); }
    static constexpr auto f16_to_f32 = f16_to_f32_any;
    static constexpr auto f32_to_f16 = f32_to_f16_any;
};

#if defined(__x86_64__)
struct vec_256 {
    typedef float   vf __attribute__((vector_size(32)));
    typedef int32_t vi __attribute__((vector_size(32)));
    static SHARED_ATTN_INLINE float sum(const vf & x) { return sum_of_halves<vec_128>(x); }
    static constexpr auto f16_to_f32 = f16_to_f32_f16c;
    static constexpr auto f32_to_f16 = f32_to_f16_f16c;
};

struct vec_512 {
    typedef float   vf __attribute__((vector_size(64)));
    typedef int32_t vi __attribute__((vector_size(64)));
    static SHARED_ATTN_INLINE float sum(const vf & x) { return sum_of_halves<vec_256>(x); }
    static constexpr auto f16_to_f32 = f16_to_f32_avx512;
    static constexpr auto f32_to_f16 = f32_to_f16_avx512;
};
#endif

// the caches that ggml converts without SIMD; blocks as in ggml-common.h, which libllama does not see

static SHARED_ATTN_INLINE float scale_to_f32(const char * src) {
    uint16_t h;
    memcpy(&h, src, sizeof(h));

    if ((h & 0x7c00) == 0x7c00) {
        return ggml_fp16_to_fp32(h); // infinite or NaN
    }

    const uint32_t bits = (uint32_t) (h & 0x7fff) << 13;
    float res;
    memcpy(&res, &bits, sizeof(res));

    return (h & 0x8000 ? -0x1p112f : 0x1p112f)*res;
}

// loops that the compiler vectorizes; it needs to know how often they run
static SHARED_ATTN_INLINE void bf16_to_f32(const char * src, float * __restrict dst, int64_t n) {
    constexpr int64_t n_block = 16;

    int64_t i = 0;
    for (; i + n_block <= n; i += n_block) {
        uint16_t x[n_block];
        uint32_t y[n_block];
        memcpy(x, src + i*sizeof(x[0]), sizeof(x));
        for (int64_t j = 0; j < n_block; ++j) {
            y[j] = (uint32_t) x[j] << 16;
        }
        memcpy(dst + i, y, sizeof(y));
    }
    ggml_bf16_to_fp32_row((const ggml_bf16_t *) src + i, dst + i, n - i);
}

static SHARED_ATTN_INLINE void q8_0_to_f32(const char * src, float * __restrict dst, int64_t n) {
    constexpr int64_t n_block = 32;

    for (int64_t i = 0; i < n; i += n_block, src += 2 + n_block) {
        const float scale = scale_to_f32(src);
        int8_t x[n_block];
        memcpy(x, src + 2, sizeof(x));
        for (int64_t j = 0; j < n_block; ++j) {
            dst[i + j] = x[j]*scale;
        }
    }
}

static SHARED_ATTN_INLINE void q4_0_to_f32(const char * src, float * __restrict dst, int64_t n) {
    constexpr int64_t n_block = 32;

    for (int64_t i = 0; i < n; i += n_block, src += 2 + n_block/2) {
        const float scale = scale_to_f32(src);
        uint8_t x[n_block/2];
        memcpy(x, src + 2, sizeof(x));
        for (int64_t j = 0; j < n_block/2; ++j) {
            dst[i + j] = ((x[j] & 15) - 8)*scale;
        }
        for (int64_t j = 0; j < n_block/2; ++j) {
            dst[i + j + n_block/2] = ((x[j] >> 4) - 8)*scale;
        }
    }
}

template <typename V>
static SHARED_ATTN_INLINE void to_f32(ggml_type type, const void * src, float * dst, int64_t n) {
    switch (type) {
        case GGML_TYPE_F32:  memcpy(dst, src, n*sizeof(float));                  break;
        case GGML_TYPE_F16:  V::f16_to_f32((const ggml_fp16_t *) src, dst, n);   break;
        case GGML_TYPE_BF16: bf16_to_f32((const char *) src, dst, n);         break;
        case GGML_TYPE_Q8_0: q8_0_to_f32((const char *) src, dst, n);         break;
        case GGML_TYPE_Q4_0: q4_0_to_f32((const char *) src, dst, n);         break;
        default:             ggml_get_type_traits(type)->to_float(src, dst, n);  break;
    }
}

template <typename V>
static void from_f32(ggml_type type, const float * src, void * dst, int64_t n) {
    switch (type) {
        case GGML_TYPE_F16:  V::f32_to_f16(src, (ggml_fp16_t *) dst, n);  break;
        default:             memcpy(dst, src, n*sizeof(float));           break;
    }
}

// the tile that both products consist of: rows as broadcast, columns as vectors
// MR: rows per tile, NV: vectors of columns per tile
template <typename V, int MR, int NV>
struct shared_attn_simd {
    using vf = typename V::vf;
    using vi = typename V::vi;

    static constexpr int64_t VW      = sizeof(vf)/sizeof(float);
    static constexpr int64_t N_PANEL = NV*VW;

    static SHARED_ATTN_INLINE void load (vf & dst, const float * src) { memcpy(&dst, src, sizeof(vf)); }
    static SHARED_ATTN_INLINE void store(float * dst, const vf & src) { memcpy(dst, &src, sizeof(vf)); }

    static int64_t pad(int64_t n) { return (n + N_PANEL - 1)/N_PANEL*N_PANEL; }
    static int64_t pad_vec(int64_t n) { return (n + VW - 1)/VW*VW; }

    // c[r][j] = (add ? c[r][j] : 0) + sum over i of a[i*a_col + r*a_row]*b[i][j]
    template <bool add>
    static SHARED_ATTN_INLINE void tile(const float * a, int64_t a_col, int64_t a_row, const float * b, int64_t b_row, int64_t n, float * c, int64_t c_row) {
        vf acc[MR][NV] = {};

        for (int64_t i = 0; i < n; ++i) {
            // in this order the sums stay in registers: all vectors of b, and of a one element at a time
            vf x[NV];
            for (int v = 0; v < NV; ++v) {
                load(x[v], b + i*b_row + v*VW);
            }
            for (int r = 0; r < MR; ++r) {
                const float y = a[i*a_col + r*a_row];
                for (int v = 0; v < NV; ++v) {
                    acc[r][v] += y*x[v];
                }
            }
        }

        for (int r = 0; r < MR; ++r) {
            for (int v = 0; v < NV; ++v) {
                if (add) {
                    vf x;
                    load(x, c + r*c_row + v*VW);
                    acc[r][v] += x;
                }
                store(c + r*c_row + v*VW, acc[r][v]);
            }
        }
    }

    // a step of the sums below: what a and b have 2*S apart is added up, and that of b comes between that of a
    template <int S, int64_t... I>
    static SHARED_ATTN_INLINE void add_lanes(vf & a, const vf & b, std::integer_sequence<int64_t, I...>) {
        a = SHARED_ATTN_SHUFFLE(a, b, (I/(2*S)*(2*S) + I%S + (I%(2*S) < S ? 0 : VW)    )...) +
            SHARED_ATTN_SHUFFLE(a, b, (I/(2*S)*(2*S) + I%S + (I%(2*S) < S ? 0 : VW) + S)...);
    }

    // element i becomes the sum of the elements of x[i], where x is seen as one array afterwards
    template <int64_t N, int S = 1>
    static SHARED_ATTN_INLINE void sum_lanes(vf * x) {
        if constexpr (S < VW) {
            for (int64_t i = 0; i < N; i += 2) {
                add_lanes<S>(x[i], x[i + 1], std::make_integer_sequence<int64_t, VW>());
                x[i/2] = x[i];
            }
            sum_lanes<N/2, 2*S>(x);
        }
    }

    // few rows: N_SUM sums are added up at a time, R rows of each of some positions
    static constexpr int64_t N_SUM = VW < 16 ? 8 : 16;

    // scores[r*scores_row + j] = q[r] times k[j] of N_GROUP positions
    template <int R>
    static SHARED_ATTN_INLINE void dot(const float * q, const float * k, int64_t n, float * scores, int64_t scores_row) {
        constexpr int64_t n_pos = N_SUM/R;

        for (int64_t j = 0; j < N_GROUP; j += n_pos) {
            vf acc[N_SUM] = {};

            for (int64_t d = 0; d < n; d += VW) {
                vf y[R];
                for (int r = 0; r < R; ++r) {
                    load(y[r], q + r*n + d);
                }
                for (int64_t i = 0; i < n_pos; ++i) {
                    vf x;
                    load(x, k + (j + i)*n + d);
                    for (int r = 0; r < R; ++r) {
                        acc[r*n_pos + i] += y[r]*x;
                    }
                }
            }

            sum_lanes<N_SUM>(acc);

            for (int r = 0; r < R; ++r) {
                memcpy(scores + r*scores_row + j, (const float *) acc + r*n_pos, n_pos*sizeof(float));
            }
        }
    }

    // sums[r] += probs[r][j]*v[j], added up over N_GROUP positions; U vectors at a time
    template <int R, int U>
    static SHARED_ATTN_INLINE void accumulate(const float * probs, int64_t probs_row, const float * v, int64_t n, int64_t d, float * sums, int64_t sums_row) {
        vf acc[R][U];
        for (int r = 0; r < R; ++r) {
            for (int u = 0; u < U; ++u) {
                load(acc[r][u], sums + r*sums_row + d + u*VW);
            }
        }
        for (int64_t j = 0; j < N_GROUP; ++j) {
            vf x[U];
            for (int u = 0; u < U; ++u) {
                load(x[u], v + j*n + d + u*VW);
            }
            for (int r = 0; r < R; ++r) {
                for (int u = 0; u < U; ++u) {
                    acc[r][u] += probs[r*probs_row + j]*x[u];
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int u = 0; u < U; ++u) {
                store(sums + r*sums_row + d + u*VW, acc[r][u]);
            }
        }
    }

    template <int R>
    static SHARED_ATTN_INLINE void accumulate(const float * probs, int64_t probs_row, const float * v, int64_t n, float * sums, int64_t sums_row) {
        int64_t d = 0;
        for (; d + 2*VW <= n; d += 2*VW) {
            accumulate<R, 2>(probs, probs_row, v, n, d, sums, sums_row);
        }
        if (d < n) {
            accumulate<R, 1>(probs, probs_row, v, n, d, sums, sums_row);
        }
    }

    // calls func<R>(row) for all rows, R of them at a time
    template <typename F>
    static SHARED_ATTN_INLINE void for_rows(int64_t n_rows, const F & func) {
        int64_t r = 0;
        for (; r + 4 <= n_rows; r += 4) {
            func(std::integral_constant<int, 4>(), r);
        }
        if (r + 2 <= n_rows) {
            func(std::integral_constant<int, 2>(), r);
            r += 2;
        }
        if (r < n_rows) {
            func(std::integral_constant<int, 1>(), r);
        }
    }

    // n elements of each of n_pos positions as f32, in rows of n_dst; those after them are fetched ahead, n_ahead of them at most
    static SHARED_ATTN_INLINE void unpack(ggml_type type, const char * src, size_t stride, int64_t n_pos, int64_t n_ahead, int64_t n, float * dst, int64_t n_dst) {
        const size_t n_bytes = ggml_row_size(type, n);

        for (int64_t j = 0; j < n_pos; ++j) {
            if (N_GROUP + j < n_pos + n_ahead) {
                prefetch(src + (N_GROUP + j)*stride, n_bytes);
            }
            to_f32<V>(type, src + j*stride, dst + j*n_dst, n);
        }
    }

    // few rows: a group of positions, and 0 beyond what there is
    static SHARED_ATTN_INLINE void unpack_group(ggml_type type, const char * src, size_t stride, int64_t n_pos, int64_t n_ahead, int64_t n, float * dst) {
        const int64_t n_pad = pad_vec(n);

        unpack(type, src, stride, n_pos, n_ahead, n, dst, n_pad);

        for (int64_t j = 0; n < n_pad && j < n_pos; ++j) {
            std::fill(dst + j*n_pad + n, dst + (j + 1)*n_pad, 0.0f);
        }
        std::fill(dst + n_pos*n_pad, dst + N_GROUP*n_pad, 0.0f);
    }
};

#endif // SHARED_ATTN_SIMD
