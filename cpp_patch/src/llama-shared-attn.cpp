#include "llama-shared-attn.h"
#include "llama-shared-attn-kernel.h"

#include "llama-arch.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"
#include "llama-model-loader.h"

#include "ggml-backend.h"
#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#define SHARED_ATTN_ABI            1
#define SHARED_ATTN_FORMAT_VERSION 1

static const char * SHARED_ATTN_KEY_FORMAT_VERSION = "shareatt.format_version";

// architectures whose attention is known to pass through the hooks
static const std::vector<llm_arch> shared_attn_archs = {
    LLM_ARCH_LLAMA,
    LLM_ARCH_LLAMA4,
    LLM_ARCH_DECI,
    LLM_ARCH_FALCON,
    LLM_ARCH_GROK,
    LLM_ARCH_GPT2,
    LLM_ARCH_GPTNEOX,
    LLM_ARCH_MPT,
    LLM_ARCH_BAICHUAN,
    LLM_ARCH_STARCODER,
    LLM_ARCH_REFACT,
    LLM_ARCH_BERT,
    LLM_ARCH_MODERN_BERT,
    LLM_ARCH_NOMIC_BERT,
    LLM_ARCH_NOMIC_BERT_MOE,
    LLM_ARCH_NEO_BERT,
    LLM_ARCH_JINA_BERT_V2,
    LLM_ARCH_JINA_BERT_V3,
    LLM_ARCH_EUROBERT,
    LLM_ARCH_BLOOM,
    LLM_ARCH_STABLELM,
    LLM_ARCH_QWEN,
    LLM_ARCH_QWEN2,
    LLM_ARCH_QWEN2MOE,
    LLM_ARCH_QWEN2VL,
    LLM_ARCH_QWEN3,
    LLM_ARCH_QWEN3MOE,
    LLM_ARCH_QWEN3VL,
    LLM_ARCH_QWEN3VLMOE,
    LLM_ARCH_PHI2,
    LLM_ARCH_PHI3,
    LLM_ARCH_PHIMOE,
    LLM_ARCH_PLAMO,
    LLM_ARCH_CODESHELL,
    LLM_ARCH_ORION,
    LLM_ARCH_INTERNLM2,
    LLM_ARCH_MINICPM,
    LLM_ARCH_GEMMA,
    LLM_ARCH_GEMMA2,
    LLM_ARCH_GEMMA3,
    LLM_ARCH_GEMMA_EMBEDDING,
    LLM_ARCH_STARCODER2,
    LLM_ARCH_MAPLE,
    LLM_ARCH_XVERSE,
    LLM_ARCH_COMMAND_R,
    LLM_ARCH_COHERE2,
    LLM_ARCH_COHERE2MOE,
    LLM_ARCH_DBRX,
    LLM_ARCH_OLMO,
    LLM_ARCH_OLMO2,
    LLM_ARCH_OLMOE,
    LLM_ARCH_MUSE_GLIMMER,
    LLM_ARCH_ARCTIC,
    LLM_ARCH_DEEPSEEK,
    LLM_ARCH_CHATGLM,
    LLM_ARCH_GLM4,
    LLM_ARCH_GLM4_MOE,
    LLM_ARCH_BITNET,
    LLM_ARCH_JAIS,
    LLM_ARCH_JAIS2,
    LLM_ARCH_NEMOTRON,
    LLM_ARCH_EXAONE,
    LLM_ARCH_EXAONE4,
    LLM_ARCH_EXAONE_MOE,
    LLM_ARCH_GRANITE,
    LLM_ARCH_GRANITE_MOE,
    LLM_ARCH_GRANITE_SWA,
    LLM_ARCH_CHAMELEON,
    LLM_ARCH_BAILINGMOE,
    LLM_ARCH_BAILINGMOE2,
    LLM_ARCH_DOTS1,
    LLM_ARCH_ARCEE,
    LLM_ARCH_AFMOE,
    LLM_ARCH_LAGUNA,
    LLM_ARCH_ERNIE4_5,
    LLM_ARCH_ERNIE4_5_MOE,
    LLM_ARCH_HUNYUAN_MOE,
    LLM_ARCH_HUNYUAN_DENSE,
    LLM_ARCH_HUNYUAN_VL,
    LLM_ARCH_HY_V3,
    LLM_ARCH_SMOLLM3,
    LLM_ARCH_OPENAI_MOE,
    LLM_ARCH_DREAM,
    LLM_ARCH_SMALLTHINKER,
    LLM_ARCH_LLADA,
    LLM_ARCH_LLADA_MOE,
    LLM_ARCH_SEED_OSS,
    LLM_ARCH_GROVEMOE,
    LLM_ARCH_APERTUS,
    LLM_ARCH_MINIMAX_M2,
    LLM_ARCH_RND1,
    LLM_ARCH_PANGU_EMBED,
    LLM_ARCH_MISTRAL3,
    LLM_ARCH_PADDLEOCR,
    LLM_ARCH_STEP35,
    LLM_ARCH_SPARK2_5,
    LLM_ARCH_LLAMA_EMBED,
    LLM_ARCH_MAINCODER,
    LLM_ARCH_TALKIE,
    LLM_ARCH_MELLUM,
    LLM_ARCH_NANBEIGE,
    LLM_ARCH_QWEN3TTS,
    LLM_ARCH_POCKETTTS,
};

// what only feeds the Q or the K of a layer
static const std::vector<llm_tensor> shared_attn_qk_tensors = {
    LLM_TENSOR_ATTN_Q,
    LLM_TENSOR_ATTN_K,
    LLM_TENSOR_ATTN_Q_NORM,
    LLM_TENSOR_ATTN_K_NORM,
    LLM_TENSOR_ATTN_SINKS,
};

static std::string shared_attn_key(llm_arch arch) {
    return std::string(llm_arch_name(arch)) + ".attention.shared_attn.source_layers";
}

//
// source map
//

uint32_t llama_shared_attn_source(const llama_hparams & hparams, uint32_t il) {
    return il - hparams.shared_attn_offs[il];
}

bool llama_shared_attn_is_follower(const llama_hparams & hparams, uint32_t il) {
    return hparams.shared_attn_offs[il] > 0;
}

bool llama_shared_attn_in_span(const llama_hparams & hparams, uint32_t il) {
    for (uint32_t i = il; i < hparams.n_layer_all; ++i) {
        if (llama_shared_attn_is_follower(hparams, i) && (i == il || llama_shared_attn_source(hparams, i) == il)) {
            return true;
        }
    }

    return false;
}

static bool shared_attn_any(const llama_hparams & hparams) {
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (llama_shared_attn_is_follower(hparams, il)) {
            return true;
        }
    }

    return false;
}

// check the whole map before any of it is stored
static void shared_attn_set(llama_hparams & hparams, llm_arch arch, llama_split_mode split_mode, const int32_t * source_layers, size_t n) {
    const std::string key = shared_attn_key(arch);

    if (std::find(shared_attn_archs.begin(), shared_attn_archs.end(), arch) == shared_attn_archs.end()) {
        throw std::runtime_error(format("%s: shared attention is not supported for this architecture", key.c_str()));
    }

    if (n != hparams.n_layer_all || n > LLAMA_MAX_LAYERS) {
        throw std::runtime_error(format("%s: has %zu layers, the model has %u", key.c_str(), n, hparams.n_layer_all));
    }

    for (uint32_t il = 0; il < n; ++il) {
        const int32_t src = source_layers[il];

        if (src != (int32_t) il && split_mode == LLAMA_SPLIT_MODE_TENSOR) {
            throw std::runtime_error(format("%s: a tensor split may put the heads of layer %u and its source on different devices; use -sm layer",
                key.c_str(), il));
        }

        if (src < 0 || (uint32_t) src > il) {
            throw std::runtime_error(format("%s: layer %u: source %d is not a layer at or before it", key.c_str(), il, src));
        }

        if (source_layers[src] != src) {
            throw std::runtime_error(format("%s: layer %u: source %d does not compute its own attention weights", key.c_str(), il, src));
        }

        if (src != (int32_t) il && il >= hparams.n_layer()) {
            throw std::runtime_error(format("%s: layer %u: predicts further tokens, so it cannot share", key.c_str(), il));
        }

        if (src != (int32_t) il && (hparams.n_head_kv(il) == 0 || hparams.n_head(il) == 0 || hparams.n_head(il)%hparams.n_head_kv(il) != 0)) {
            throw std::runtime_error(format("%s: layer %u: cannot share with %u query heads and %u KV heads", key.c_str(), il,
                hparams.n_head(il), hparams.n_head_kv(il)));
        }

        if (hparams.n_head(src)        != hparams.n_head(il)        || hparams.n_head_kv(src)     != hparams.n_head_kv(il) ||
            hparams.n_embd_head_k(src) != hparams.n_embd_head_k(il) || hparams.n_embd_head_v(src) != hparams.n_embd_head_v(il)) {
            throw std::runtime_error(format("%s: layer %u: source %d has other attention heads", key.c_str(), il, src));
        }

        if (hparams.is_swa(src) != hparams.is_swa(il)) {
            throw std::runtime_error(format("%s: layer %u: source %d has another attention window", key.c_str(), il, src));
        }
    }

    for (uint32_t il = 0; il < n; ++il) {
        hparams.shared_attn_offs[il] = il - source_layers[il];
    }
}

void llama_shared_attn_load(llama_hparams & hparams, llm_arch arch, llama_split_mode split_mode, const gguf_context * meta) {
    const int64_t kid_version = gguf_find_key(meta, SHARED_ATTN_KEY_FORMAT_VERSION);
    if (kid_version >= 0) {
        if (gguf_get_kv_type(meta, kid_version) != GGUF_TYPE_UINT32) {
            throw std::runtime_error(format("%s: must be a u32", SHARED_ATTN_KEY_FORMAT_VERSION));
        }

        const uint32_t version = gguf_get_val_u32(meta, kid_version);
        if (version > SHARED_ATTN_FORMAT_VERSION) {
            throw std::runtime_error(format("%s: is %u, this runtime knows up to %d", SHARED_ATTN_KEY_FORMAT_VERSION, version, SHARED_ATTN_FORMAT_VERSION));
        }
    }

    const std::string key = shared_attn_key(arch);

    const int64_t kid = gguf_find_key(meta, key.c_str());
    if (kid < 0) {
        return;
    }

    if (gguf_get_kv_type(meta, kid) != GGUF_TYPE_ARRAY || gguf_get_arr_type(meta, kid) != GGUF_TYPE_INT32) {
        throw std::runtime_error(format("%s: must be an array of i32", key.c_str()));
    }

    shared_attn_set(hparams, arch, split_mode, (const int32_t *) gguf_get_arr_data(meta, kid), gguf_get_arr_n(meta, kid));

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (llama_shared_attn_is_follower(hparams, il)) {
            LLAMA_LOG_INFO("%s: layer %3u reuses the attention weights of layer %3u\n", __func__, il, llama_shared_attn_source(hparams, il));
        }
    }
}

void llama_shared_attn_save(const llama_hparams & hparams, llm_arch arch, gguf_context * meta) {
    if (!shared_attn_any(hparams)) {
        return;
    }

    std::vector<int32_t> source_layers(hparams.n_layer_all);
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        source_layers[il] = llama_shared_attn_source(hparams, il);
    }

    gguf_set_arr_data(meta, shared_attn_key(arch).c_str(), GGUF_TYPE_INT32, source_layers.data(), source_layers.size());
    gguf_set_val_u32 (meta, SHARED_ATTN_KEY_FORMAT_VERSION, SHARED_ATTN_FORMAT_VERSION);
}

int llama_shared_attn_tensor_flags(const llama_hparams & hparams, const LLM_TN_IMPL & tn) {
    if (tn.bid < 0 || !llama_shared_attn_is_follower(hparams, tn.bid)) {
        return 0;
    }

    if (std::find(shared_attn_qk_tensors.begin(), shared_attn_qk_tensors.end(), tn.tensor) == shared_attn_qk_tensors.end()) {
        return 0;
    }

    return llama_model_loader::TENSOR_NOT_REQUIRED | llama_model_loader::TENSOR_SKIP | llama_model_loader::TENSOR_SKIP_IF_VIRTUAL;
}

bool llama_shared_attn_needs_v(const llama_hparams & hparams, const LLM_TN_IMPL & tn, int flags) {
    return tn.tensor == LLM_TENSOR_ATTN_QKV && llama_shared_attn_is_follower(hparams, tn.bid) &&
        (strcmp(tn.suffix, "bias") == 0 || !(flags & llama_model_loader::TENSOR_NOT_REQUIRED));
}

void llama_shared_attn_check_lora(const llama_model & model, const std::string & name) {
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        if (!llama_shared_attn_is_follower(model.hparams, il)) {
            continue;
        }

        for (const llm_tensor tensor : shared_attn_qk_tensors) {
            if (name == LLM_TN(model.arch)(tensor, "weight", il).str()) {
                throw std::runtime_error(format("LoRA tensor '%s': layer %u reuses the attention weights of layer %u, so it has no Q and K to adapt",
                    name.c_str(), il, llama_shared_attn_source(model.hparams, il)));
            }
        }
    }
}

//
// context
//

// an environment variable that holds a number
static uint64_t shared_attn_env(const char * name, const char * meaning, uint64_t max, uint64_t value_default) {
    const char * env = getenv(name);
    if (!env) {
        return value_default;
    }

    char * end = nullptr;
    errno = 0;
    const unsigned long long value = strtoull(env, &end, 10);
    if (errno != 0 || env[0] < '0' || env[0] > '9' || *end != '\0' || value > max) {
        throw std::runtime_error(format("%s: '%s' is not %s", name, env, meaning));
    }

    return value;
}

llama_shared_attn_params llama_shared_attn_init(const llama_model & model) {
    llama_shared_attn_params res;

    res.hold = model.shared_attn_hold;

    if (shared_attn_any(model.hparams)) {
        res.hybrid = shared_attn_env("LLAMA_SHARED_ATTN_HYBRID",  "0 or 1",            1,              0);
        res.budget = shared_attn_env("LLAMA_SHARED_ATTN_P_BYTES", "a number of bytes", UINT64_MAX - 1, UINT64_MAX);
    }

    return res;
}

// of the probabilities between our kernels
static ggml_type shared_attn_probs_type(ggml_type type_v) {
    return type_v == GGML_TYPE_F32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
}

// bytes of the probabilities of one token over n_kv positions, in those layers for which uses(il) holds
// spans may overlap: what counts is the most that is alive at any layer
static uint64_t shared_attn_bytes(const llama_hparams & hparams, uint64_t n_kv, ggml_type type_v, const std::function<bool(uint32_t il)> & uses) {
    std::vector<int32_t> last(hparams.n_layer_all, -1); // the last layer that uses the probabilities of this one

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (uses(il)) {
            last[llama_shared_attn_source(hparams, il)] = il;
        }
    }

    uint64_t n_bytes = 0;

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        uint64_t alive = 0;
        for (uint32_t src = 0; src <= il; ++src) {
            if (last[src] >= (int32_t) il) {
                alive += hparams.n_head(src)*n_kv*ggml_type_size(shared_attn_probs_type(type_v));
            }
        }
        n_bytes = std::max(n_bytes, alive);
    }

    return n_bytes;
}

//
// graph
//

llm_graph_qkv llama_shared_attn_build_qkv(
        const llm_graph_context & g,
        const llama_layer & layer,
              ggml_tensor * cur,
                  int64_t   n_embd_head_q,
                  int64_t   n_head_q,
                  int64_t   n_embd_head_k,
                  int64_t   n_head_k,
                  int64_t   n_embd_head_v,
                  int64_t   n_head_v,
                      int   il,
                     bool   reshape) {
    ggml_tensor * q = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n_embd_head_q*n_head_q, g.n_tokens);
    ggml_tensor * k = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n_embd_head_k*n_head_k, g.n_tokens);
    ggml_tensor * v = g.build_lora_mm(layer.wv, cur, layer.wv_s);

    if (layer.wv_b) {
        v = ggml_add(g.ctx0, v, layer.wv_b);
    }

    if (reshape) {
        if (g.hparams.f_clamp_kqv > 0.0f) {
            v = ggml_clamp(g.ctx0, v, -g.hparams.f_clamp_kqv, g.hparams.f_clamp_kqv);
        }

        q = ggml_reshape_3d(g.ctx0, q, n_embd_head_q, n_head_q, g.n_tokens);
        k = ggml_reshape_3d(g.ctx0, k, n_embd_head_k, n_head_k, g.n_tokens);
        v = ggml_reshape_3d(g.ctx0, v, n_embd_head_v, n_head_v, g.n_tokens);
        g.cb(v, "Vcur", il);
    }

    return { q, k, v };
}

void llama_shared_attn_exchange_qk(
        const llm_graph_context & g,
              ggml_tensor * & q,
              ggml_tensor * & k,
              ggml_tensor * & kq_b,
              ggml_tensor * & sinks,
                      int     il) {
    auto & src = g.shared_attn[llama_shared_attn_source(g.hparams, il)];

    if (llama_shared_attn_is_follower(g.hparams, il)) {
        q     = src.q;
        k     = src.k;
        kq_b  = src.kq_b;
        sinks = src.sinks;
    } else {
        src.q     = q;
        src.k     = k;
        src.kq_b  = kq_b;
        src.sinks = sinks;
    }
}

// an encoder has no cache whose saving could be spent on probabilities, so it recomputes them unless it gets a budget
static bool shared_attn_encoder_reuses(const llm_graph_context & g, int il) {
    if (!shared_attn_any(g.hparams) || !llama_shared_attn_kernel_available()) {
        return false;
    }

    const auto & params = g.cparams.shared_attn;

    const auto uses = [&](uint32_t i) {
        return !params.hybrid || llama_shared_attn_in_span(g.hparams, i);
    };

    return params.budget != UINT64_MAX && uses(il) &&
        g.n_tokens*shared_attn_bytes(g.hparams, g.n_tokens, GGML_TYPE_F32, uses) <= params.budget;
}

bool llama_shared_attn_reuses(const llm_graph_context & g, int il) {
    // training switches flash attention off, and our kernels have no backward pass either
    if (!g.cparams.flash_attn) {
        return false;
    }

    const llama_shared_attn_kv * kv = nullptr;

    if (!g.mctx) {
        return shared_attn_encoder_reuses(g, il);
    } else if (const auto * mctx = dynamic_cast<const llama_kv_cache_context *>(g.mctx)) {
        kv = &mctx->get_shared_attn();
    } else if (const auto * mctx = dynamic_cast<const llama_kv_cache_iswa_context *>(g.mctx)) {
        kv = &(g.hparams.is_swa(il) ? mctx->get_swa() : mctx->get_base())->get_shared_attn();
    }

    return kv && kv->reuse && g.n_tokens <= kv->n_ubatch_max && (kv->reuse_all || llama_shared_attn_in_span(g.hparams, il));
}

static bool shared_attn_on_cpu(const ggml_tensor * k) {
    const ggml_tensor * base = k->view_src ? k->view_src : k;

    return base->buffer && ggml_backend_buffer_get_type(base->buffer) == ggml_backend_cpu_buffer_type();
}

ggml_tensor * llama_shared_attn_exchange_probs(
        const llm_graph_context & g,
              ggml_tensor * probs,
              ggml_tensor * q,
              ggml_tensor * k,
              ggml_tensor * v,
              ggml_tensor * kq_b,
              ggml_tensor * kq_mask,
              ggml_tensor * sinks,
                    float   kq_scale,
                      int   il) {
    if (!shared_attn_any(g.hparams)) {
        return probs;
    }

    auto & src = g.shared_attn[llama_shared_attn_source(g.hparams, il)];

    if (llama_shared_attn_is_follower(g.hparams, il)) {
        return src.probs;
    }

    const bool reuses = llama_shared_attn_reuses(g, il);

    if (reuses && !kq_b && llama_shared_attn_kernel_supported(q, k)) {
        probs = llama_shared_attn_kernel(g.ctx0, q, k, kq_mask, sinks, kq_scale, g.hparams.f_max_alibi_bias,
                g.hparams.attn_soft_cap ? g.hparams.f_attn_logit_softcapping : 0.0f, shared_attn_probs_type(v->type));
        g.cb(probs, "kq_soft_max", il);
    } else if (reuses || shared_attn_on_cpu(k)) {
        // once for all products, not once for each: ggml multiplies f32, f16 and bf16 with their own type
        const ggml_type type = reuses ? shared_attn_probs_type(v->type) : v->type;
        if (type != probs->type && !ggml_is_quantized(type)) {
            probs = ggml_cast(g.ctx0, probs, type);
            g.cb(probs, "kq_soft_max", il);
        }
    }

    src.probs = probs;

    return probs;
}

ggml_tensor * llama_shared_attn_build_kqv(const llm_graph_context & g, ggml_tensor * v, ggml_tensor * probs, int il) {
    return llama_shared_attn_reuses(g, il) ? llama_shared_attn_kernel_pv(g.ctx0, probs, v) : ggml_mul_mat(g.ctx0, v, probs);
}

//
// KV cache
//

// the least ubatch that is worth reusing the probabilities for
static const uint32_t SHARED_ATTN_N_UBATCH_MIN = 64;

// the caches of a context that a budget is for: layers with a sliding window have one of their own
static uint64_t shared_attn_n_caches(const llama_hparams & hparams) {
    bool any[2] = {};
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        any[hparams.is_swa(il)] |= llama_shared_attn_is_follower(hparams, il);
    }

    return any[0] + any[1];
}

// a span that lies on several devices has its K cache on the first of them
static void shared_attn_log_devices(const llama_model & model, const llama_hparams & hparams, const llama_shared_attn_filter & filter) {
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        const uint32_t src = llama_shared_attn_source(hparams, il);

        if ((filter && !filter(il)) || model.dev_layer(il) == model.dev_layer(src)) {
            continue;
        }

        uint32_t last = il;
        for (uint32_t i = il; i < hparams.n_layer_all; ++i) {
            if (llama_shared_attn_source(hparams, i) == src) {
                last = i;
            }
        }

        const bool src_on_cpu = ggml_backend_dev_type(model.dev_layer(src)) == GGML_BACKEND_DEVICE_TYPE_CPU;

        LLAMA_LOG_WARN("%s: layers %u and %u of a span are on different devices, so the K cache is copied for each ubatch; %s\n", __func__, src, il,
                src_on_cpu ? format("-ngl %u or -ngl %u keeps the span together", hparams.n_layer_all - last, hparams.n_layer_all + 1 - src).c_str()
                           : "another -ts keeps the span together");
        return;
    }
}

llama_shared_attn_kv llama_shared_attn_init_kv(
        const llama_model   & model,
        const llama_hparams & hparams,
                  ggml_type   type_k,
                  ggml_type   type_v,
                       bool   v_trans,
                       bool   offload,
                   uint32_t   n_cells,
                   uint32_t   n_stream,
        const llama_shared_attn_filter & filter) {
    llama_shared_attn_kv res;

    if (!shared_attn_any(hparams)) {
        return res;
    }

    const llama_shared_attn_params params = llama_shared_attn_init(model);

    if (offload) {
        shared_attn_log_devices(model, hparams, filter);
    }

    // without flash attention there is nothing to choose
    if (v_trans || !llama_shared_attn_kernel_available()) {
        return res;
    }

    const auto uses = [&](uint32_t il) {
        return hparams.has_kv(il) && (!filter || filter(il)) && (!params.hybrid || llama_shared_attn_in_span(hparams, il));
    };

    uint64_t saving = 0;

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (!uses(il)) {
            continue;
        }

        // on other devices recomputing is faster than moving the probabilities
        if (offload && ggml_backend_dev_buffer_type(model.dev_layer(il)) != ggml_backend_cpu_buffer_type()) {
            return res;
        }

        if (llama_shared_attn_is_follower(hparams, il)) {
            saving += ggml_row_size(type_k, hparams.n_embd_k_gqa(il))*n_cells*n_stream;
        }
    }

    if (saving == 0) {
        return res;
    }

    const uint64_t n_bytes  = shared_attn_bytes(hparams, n_cells, type_v, uses);
    const uint64_t budget   = params.budget == UINT64_MAX ? saving : params.budget/shared_attn_n_caches(hparams);
    const uint64_t n_ubatch = std::min<uint64_t>(budget/n_bytes, UINT32_MAX);

    if (n_ubatch < SHARED_ATTN_N_UBATCH_MIN) {
        LLAMA_LOG_INFO("%s: followers recompute the attention weights: those of %u tokens take %.2f MiB of %.2f MiB\n", __func__,
                SHARED_ATTN_N_UBATCH_MIN, SHARED_ATTN_N_UBATCH_MIN*n_bytes/1024.0/1024.0, budget/1024.0/1024.0);
        return res;
    }

    res.reuse        = true;
    res.reuse_all    = !params.hybrid;
    res.n_kv_pad     = 64; // a graph is built anew for each, but that takes less than a millisecond
    res.n_ubatch_max = n_ubatch - n_ubatch%16; // ggml's matrix products are slower in between

    LLAMA_LOG_INFO("%s: followers reuse the attention weights of up to %u tokens at a time\n", __func__, res.n_ubatch_max);

    return res;
}

uint32_t llama_shared_attn_n_ubatch(const llama_memory_i * memory, const llama_cparams & cparams) {
    uint32_t n_max = UINT32_MAX;

    if (const auto * kv = dynamic_cast<const llama_kv_cache *>(memory)) {
        n_max = kv->get_shared_attn().n_ubatch_max;
    }

    if (const auto * kv = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        n_max = std::min(kv->get_base()->get_shared_attn().n_ubatch_max, kv->get_swa()->get_shared_attn().n_ubatch_max);
    }

    const bool pooled = cparams.embeddings && cparams.pooling_type != LLAMA_POOLING_TYPE_NONE && cparams.pooling_type != LLAMA_POOLING_TYPE_LAST;

    // training switches flash attention off, and wants a ubatch that is as large as the context
    const bool may_split = cparams.flash_attn && cparams.causal_attn && !pooled;

    return may_split ? std::min(cparams.n_ubatch, n_max) : cparams.n_ubatch;
}

//
// state files
//

void llama_shared_attn_state_write_no_k(llama_io_write_i & io) {
    const int32_t  k_type_i   = -1;
    const uint64_t k_size_row =  0;

    io.write(&k_type_i,   sizeof(k_type_i));
    io.write(&k_size_row, sizeof(k_size_row));
}

bool llama_shared_attn_state_read_no_k(llama_io_read_i & io, uint32_t il) {
    int32_t  k_type_i;
    uint64_t k_size_row;

    io.read(&k_type_i,   sizeof(k_type_i));
    io.read(&k_size_row, sizeof(k_size_row));

    if (k_type_i != -1 || k_size_row != 0) {
        LLAMA_LOG_ERROR("%s: the state has a K cache for layer %u, this model has none there\n", __func__, il);
        return false;
    }

    return true;
}

//
// public API
//

int32_t llama_shared_attn_abi(void) {
    return SHARED_ATTN_ABI;
}

int32_t llama_model_shared_attn_source(const llama_model * model, int32_t il) {
    if (il < 0 || (uint32_t) il >= model->hparams.n_layer_all) {
        return -1;
    }

    return llama_shared_attn_source(model->hparams, il);
}

bool llama_model_shared_attn_set(llama_model * model, const int32_t * source_layers, size_t n_layers) {
    try {
        if (model->shared_attn_hold.use_count() > 1) {
            throw std::runtime_error("a context of the model exists, and its KV cache was made from the map as it is");
        }

        llama_hparams hparams = model->hparams;
        shared_attn_set(hparams, model->arch, model->split_mode(), source_layers, n_layers);

        for (uint32_t il = 0; il < n_layers; ++il) {
            const auto & layer = model->layers[il];

            if (!llama_shared_attn_is_follower(hparams, il) && !layer.wqkv && !(layer.wq && layer.wk)) {
                throw std::runtime_error(format("layer %u cannot compute its own attention weights: the model has no Q and K for it", il));
            }
        }

        model->hparams.shared_attn_offs = hparams.shared_attn_offs;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return false;
    }

    return true;
}
