// The attention kernels of the patch against ggml's operators; built and read by test_kernel.py.
//
//     kernel check            one line per case: name, weights, product with V or both fused, instruction set, threads,
//                             error (NMSE)
//     kernel time             one line per shape: milliseconds of weights by operators and kernel, of the product with V by
//                             operator (V transposed) and kernel, of both fused, and of flash attention

#include "ggml-backend.h"

#include <cstring>

#ifdef __x86_64__
static bool supported(const char * name) {
    return strcmp(name, "avx512f") == 0 ? __builtin_cpu_supports("avx512f")
         : strcmp(name, "avx2")    == 0 ? __builtin_cpu_supports("avx2") : __builtin_cpu_supports("fma");
}
#else
static bool supported(const char *) { return false; }
#endif

// the kernel asks ggml-cpu what it was compiled for; here, it is told
static const char * instruction_set = "any";

[[maybe_unused]] static const ggml_backend_feature * told(ggml_backend_reg_t) {
    static const ggml_backend_feature avx512[] = {{ "AVX512", "1" }, { nullptr, nullptr }};
    static const ggml_backend_feature avx2  [] = {{ "AVX2", "1" }, { "FMA", "1" }, { "F16C", "1" }, { nullptr, nullptr }};
    static const ggml_backend_feature any   [] = {{ nullptr, nullptr }};

    return strcmp(instruction_set, "avx512f") == 0 ? avx512 : strcmp(instruction_set, "avx2") == 0 ? avx2 : any;
}

#define ggml_backend_reg_get_proc_address(reg, name) told
#include "llama-shared-attn-kernel.cpp"
#undef ggml_backend_reg_get_proc_address

#include "ggml-alloc.h"
#include "ggml-cpu.h"

#include <chrono>
#include <cstdio>
#include <functional>
#include <random>
#include <string>

struct shape {
    std::string name;
    int64_t   n_head      = 8;
    int64_t   n_head_kv   = 2;
    int64_t   n_embd_head = 64;
    int64_t   n_tokens    = 40;
    int64_t   n_kv        = 1100; // two blocks and a rest
    int64_t   n_stream    = 1;
    ggml_type type_k      = GGML_TYPE_F16; // and of V
    ggml_type type_probs  = GGML_TYPE_F32;
    ggml_type type_mask   = GGML_TYPE_F16;
    float     max_bias    = 0.0f;
    float     softcap     = 0.0f;
    bool      sinks       = false;
    bool      nan         = false; // in the Q of the first head and token
    int64_t   window      = 1 << 20; // positions that a token attends to
};

static std::mt19937 rng(1);

static std::vector<float> random_f32(size_t n, float gain) {
    std::normal_distribution<float> normal(0.0f, gain);
    std::vector<float> res(n);
    for (auto & x : res) {
        x = normal(rng);
    }
    return res;
}

static void set(ggml_tensor * t, const std::vector<float> & data) {
    std::vector<uint8_t> bytes(ggml_nbytes(t));
    ggml_quantize_chunk(t->type, data.data(), bytes.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
    ggml_backend_tensor_set(t, bytes.data(), 0, bytes.size());
}

// the inputs of attention as llama.cpp lays them out: heads between positions, tokens of a batch at the end of the context
struct inputs {
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_context * ctx;
    ggml_tensor *q, *k, *v, *v_trans, *mask, *sinks, *probs;

    explicit inputs(const shape & s) {
        ggml_init_params params = { ggml_tensor_overhead()*16, nullptr, true };
        ctx = ggml_init(params);

        ggml_tensor * q0 = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, s.n_embd_head, s.n_head,    s.n_tokens, s.n_stream);
        ggml_tensor * k0 = ggml_new_tensor_4d(ctx, s.type_k,      s.n_embd_head, s.n_head_kv, s.n_kv,     s.n_stream);
        ggml_tensor * v0 = ggml_new_tensor_4d(ctx, s.type_k,      s.n_embd_head, s.n_head_kv, s.n_kv,     s.n_stream);
        v_trans = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, s.n_kv, s.n_embd_head, s.n_head_kv, s.n_stream);
        mask    = ggml_new_tensor_4d(ctx, s.type_mask,   s.n_kv, s.n_tokens,    1,           s.n_stream);
        probs   = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, s.n_kv, s.n_tokens,    s.n_head,    s.n_stream);
        sinks   = s.sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, s.n_head) : nullptr;

        ggml_backend_buffer_clear(ggml_backend_alloc_ctx_tensors(ctx, backend), 0);

        auto qs = random_f32(ggml_nelements(q0), 2.0f);
        if (s.nan) {
            qs[0] = NAN;
        }
        set(q0, qs);
        set(k0, random_f32(ggml_nelements(k0), 2.0f));
        set(v0, random_f32(ggml_nelements(v0), 1.0f));
        set(v_trans, random_f32(ggml_nelements(v_trans), 1.0f));
        set(probs,   random_f32(ggml_nelements(probs),   1.0f));
        if (sinks) {
            set(sinks, random_f32(s.n_head, 3.0f));
        }

        std::vector<float> m(ggml_nelements(mask));
        for (int64_t i = 0; i < (int64_t) m.size(); ++i) {
            const int64_t token = i/s.n_kv%s.n_tokens, pos = i%s.n_kv, ahead = pos - (s.n_kv - s.n_tokens + token);
            m[i] = ahead > 0 || ahead <= -s.window || (s.n_stream > 1 && pos < 600) ? -INFINITY : s.max_bias > 0.0f ? (float) ahead : 0.0f;
        }
        set(mask, m);

        q = ggml_permute(ctx, q0, 0, 2, 1, 3);
        k = ggml_permute(ctx, k0, 0, 2, 1, 3);
        v = ggml_permute(ctx, v0, 0, 2, 1, 3);
    }
};

struct graph {
    ggml_backend_t backend;
    ggml_tensor  * out;
    ggml_cgraph  * gf;

    graph(const inputs & in, const std::function<ggml_tensor *(ggml_context *)> & build) : backend(in.backend) {
        ggml_init_params params = { ggml_tensor_overhead()*32 + ggml_graph_overhead(), nullptr, true };
        ggml_context * ctx = ggml_init(params);
        out = build(ctx);
        gf  = ggml_new_graph(ctx);
        ggml_build_forward_expand(gf, out);
        ggml_gallocr_alloc_graph(ggml_gallocr_new(ggml_backend_cpu_buffer_type()), gf);
    }

    void compute() { ggml_backend_graph_compute(backend, gf); }

    // of the second run: the kernel must begin anew in a graph that runs again, as those of a context do
    std::vector<float> values() {
        compute();
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            ggml_tensor * node = ggml_graph_node(gf, i);
            if (node->op == GGML_OP_CUSTOM) {
                memset(node->data, 0xff, ggml_nbytes(node)); // NaN
            }
        }
        compute();
        std::vector<float> res(ggml_nelements(out));
        to_f32<vec_128>(out->type, out->data, res.data(), res.size());
        return res;
    }
};

static ggml_tensor * operators(ggml_context * ctx, const inputs & in, const shape & s, float scale) {
    ggml_tensor * kq = ggml_mul_mat(ctx, s.type_k == GGML_TYPE_F32 ? in.k : ggml_cast(ctx, in.k, GGML_TYPE_F32), in.q);
    if (s.softcap != 0.0f) {
        kq = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, kq, scale/s.softcap)), s.softcap);
        scale = 1.0f;
    }
    kq = ggml_soft_max_ext(ctx, kq, in.mask, scale, s.max_bias);
    ggml_soft_max_add_sinks(kq, in.sinks);
    return kq;
}

static ggml_tensor * rounded(ggml_context * ctx, ggml_tensor * t, ggml_type type) {
    return type == GGML_TYPE_F32 ? t : ggml_cast(ctx, ggml_cast(ctx, t, type), GGML_TYPE_F32);
}

static ggml_tensor * fused(ggml_context * ctx, const inputs & in, const shape & s, float scale) {
    ggml_tensor * probs = llama_shared_attn_kernel(ctx, in.q, in.k, in.mask, in.sinks, scale, s.max_bias, s.softcap, s.type_probs);
    GGML_ASSERT(llama_shared_attn_kernel_fuses(probs));
    return llama_shared_attn_kernel_fused(ctx, probs, in.v);
}

using builder = std::function<ggml_tensor *(ggml_context *)>;

static void compare(const shape & s, const char * what, const inputs & in, const builder & expect, const builder & measure) {
    const auto expected = graph(in, expect).values();

    for (const char * set : { "avx512f", "avx2", "any" }) {
        if (strcmp(set, "any") != 0 && !(supported(set) && supported("fma"))) {
            continue;
        }
        instruction_set = set;
        for (int n_threads : { 1, 3 }) {
            ggml_backend_cpu_set_n_threads(in.backend, n_threads);
            const auto measured = graph(in, measure).values();

            double error = 0.0, norm = 0.0;
            for (size_t i = 0; i < expected.size(); ++i) {
                if (std::isnan(expected[i])) {
                    error += !std::isnan(measured[i]);
                    continue;
                }
                error += pow(measured[i] - expected[i], 2);
                norm  += pow(expected[i], 2);
            }
            printf("%s %s %s %d %.2e\n", s.name.c_str(), what, set, n_threads, error/norm);
        }
    }
}

static void check() {
    std::vector<shape> shapes(28);
    size_t n = 0;
    auto next = [&](const char * name) -> shape & { shapes[n].name = name; return shapes[n++]; };

    next("GQA");
    next("MHA").n_head_kv = 8;
    next("MQA").n_head_kv = 1;
    next("one-block").n_kv = 512;
    next("all-tokens-new").n_kv = 40;
    next("odd") = { "odd", 6, 2, 80, 37, 777 };
    next("streams").n_stream = 3;
    next("f16").type_probs = GGML_TYPE_F16;
    next("f32-K").type_k = GGML_TYPE_F32;
    next("q8_0-K").type_k = GGML_TYPE_Q8_0;
    next("q4_0-K").type_k = GGML_TYPE_Q4_0;
    next("q5_1-K").type_k = GGML_TYPE_Q5_1;
    next("bf16-K").type_k = GGML_TYPE_BF16;
    next("f32-mask").type_mask = GGML_TYPE_F32;
    next("alibi").max_bias = 8.0f;
    next("softcap").softcap = 5.0f;
    next("sinks").sinks = true;
    next("window").window = 575; // some tokens of a tile attend to the first block, and others do not
    shape & all = next("all-at-once");
    all.n_head = 12; all.n_head_kv = 3; all.max_bias = 4.0f; all.softcap = 5.0f; all.sinks = true; all.n_stream = 2;

    // one block, as masked ones stay 0
    shape & nan = next("NaN");
    nan.n_kv = 512; nan.nan = true;

    // few tokens: less than 16 rows per KV head
    next("decode").n_tokens = 1;
    next("decode-MHA") = { "decode-MHA", 8, 8, 128, 1, 1100 };
    next("decode-MQA") = { "decode-MQA", 8, 1, 64, 1, 32 };
    next("decode-odd") = { "decode-odd", 6, 2, 72, 3, 777 };
    next("decode-q8_0-K") = { "decode-q8_0-K", 8, 2, 64, 2, 1100, 1, GGML_TYPE_Q8_0 };
    shape & few = next("decode-all-at-once") = all;
    few.name = "decode-all-at-once"; few.n_tokens = 3;
    next("decode-long") = { "decode-long", 4, 2, 64, 1, 5000 }; // parts of several blocks
    shape & few_nan = next("decode-NaN") = nan;
    few_nan.name = "decode-NaN"; few_nan.n_tokens = 2;

    for (const shape & s : shapes) {
        inputs in(s);
        const float scale = 1.0f/sqrtf(s.n_embd_head);

        compare(s, "weights", in,
            [&](ggml_context * ctx) { return operators(ctx, in, s, scale); },
            [&](ggml_context * ctx) {
                return llama_shared_attn_kernel(ctx, in.q, in.k, in.mask, in.sinks, scale, s.max_bias, s.softcap, s.type_probs);
            });
        compare(s, "product", in,
            [&](ggml_context * ctx) {
                ggml_tensor * v = ggml_cont(ctx, ggml_transpose(ctx, ggml_cast(ctx, in.v, GGML_TYPE_F32)));
                return ggml_mul_mat(ctx, v, rounded(ctx, operators(ctx, in, s, scale), s.type_probs));
            },
            [&](ggml_context * ctx) {
                ggml_tensor * probs = operators(ctx, in, s, scale);
                return llama_shared_attn_kernel_pv(ctx, s.type_probs == GGML_TYPE_F32 ? probs : ggml_cast(ctx, probs, s.type_probs), in.v);
            });
        compare(s, "fused", in,
            [&](ggml_context * ctx) {
                ggml_tensor * v = ggml_cont(ctx, ggml_transpose(ctx, ggml_cast(ctx, in.v, GGML_TYPE_F32)));
                return ggml_mul_mat(ctx, v, operators(ctx, in, s, scale));
            },
            [&](ggml_context * ctx) { return fused(ctx, in, s, scale); });
    }
}

static double milliseconds(graph g) {
    std::vector<double> times;
    for (int i = 0; i < 6; ++i) {
        const auto start = std::chrono::steady_clock::now();
        g.compute();
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin() + 1, times.end()); // not the first
    return times[3];
}

static void time() {
    instruction_set = supported("avx512f") ? "avx512f" : supported("avx2") && supported("fma") ? "avx2" : "any";

    for (const shape & s : std::vector<shape>{
            { "GQA", 32,  8,  64, 256,  4096 }, { "GQA", 32, 8, 64, 112, 16384 }, { "GQA", 32, 8, 64, 512, 512 },
            { "MHA", 16, 16, 128, 256,  4096 }, { "GQA", 32, 8, 64, 1, 4096 }, { "MHA", 16, 16, 128, 1, 16384 } }) {
        inputs in(s);
        const float scale = 1.0f/sqrtf(s.n_embd_head);
        ggml_backend_cpu_set_n_threads(in.backend, 1);

        const double plain = milliseconds(graph(in, [&](ggml_context * ctx) {
            return ggml_cast(ctx, ggml_soft_max_ext(ctx, ggml_mul_mat(ctx, in.k, in.q), in.mask, scale, 0.0f), GGML_TYPE_F16);
        }));
        const double kernel = milliseconds(graph(in, [&](ggml_context * ctx) {
            return llama_shared_attn_kernel(ctx, in.q, in.k, in.mask, nullptr, scale, 0.0f, 0.0f, GGML_TYPE_F16);
        }));
        const double product = milliseconds(graph(in, [&](ggml_context * ctx) { return ggml_mul_mat(ctx, in.v_trans, in.probs); }));
        const double pv      = milliseconds(graph(in, [&](ggml_context * ctx) { return llama_shared_attn_kernel_pv(ctx, in.probs, in.v); }));
        const double both    = milliseconds(graph(in, [&](ggml_context * ctx) { return fused(ctx, in, s, scale); }));
        const double flash   = milliseconds(graph(in, [&](ggml_context * ctx) {
            return ggml_flash_attn_ext(ctx, in.q, in.k, in.v, in.mask, scale, 0.0f, 0.0f);
        }));
        printf("| %d/%d of %d, %d, %d | %.2g | %.2g | %.2g | %.2g | %.2g | %.2g |\n", (int) s.n_head, (int) s.n_head_kv, (int) s.n_embd_head,
                (int) s.n_tokens, (int) s.n_kv, plain, kernel, product, pv, both, flash);
    }
}

int main(int, char ** argv) {
    strcmp(argv[1], "time") == 0 ? time() : check();
}
