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

#define SHARED_ATTN_ABI            2
#define SHARED_ATTN_FORMAT_VERSION 2
#define SHARED_ATTN_MAX_HEADS      1024 // of a layer: a map has an entry for each, and a damaged file may claim any number

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

// of these, those whose attention is known as a whole only: their Q and K are normalized across heads, or something of the
// size of all heads stands between the attention and its output projection
static const std::vector<llm_arch> shared_attn_whole_layer_archs = {
    LLM_ARCH_BITNET,
    LLM_ARCH_OLMO2,
    LLM_ARCH_OLMOE,
    LLM_ARCH_MUSE_GLIMMER,
    LLM_ARCH_AFMOE,
    LLM_ARCH_LAGUNA,
    LLM_ARCH_MINIMAX_M2,
    LLM_ARCH_STEP35,
    LLM_ARCH_SPARK2_5,
};

// what only feeds the Q or the K of a layer
static const std::vector<llm_tensor> shared_attn_qk_tensors = {
    LLM_TENSOR_ATTN_Q,
    LLM_TENSOR_ATTN_K,
    LLM_TENSOR_ATTN_Q_NORM,
    LLM_TENSOR_ATTN_K_NORM,
    LLM_TENSOR_ATTN_SINKS,
};

static std::string shared_attn_key(llm_arch arch, const char * name) {
    return std::string(llm_arch_name(arch)) + ".attention.shared_attn." + name;
}

static bool shared_attn_contains(const std::vector<llm_arch> & archs, llm_arch arch) {
    return std::find(archs.begin(), archs.end(), arch) != archs.end();
}

//
// map
//

static const llama_shared_attn_layer * shared_attn_layer(const llama_hparams & hparams, uint32_t il) {
    return hparams.shared_attn && il < hparams.shared_attn->layers.size() ? &hparams.shared_attn->layers[il] : nullptr;
}

uint32_t llama_shared_attn_n_head_k(const llama_hparams & hparams, uint32_t il) {
    const auto * layer = shared_attn_layer(hparams, il);

    return layer ? layer->n_head_k : hparams.n_head_kv(il);
}

uint32_t llama_shared_attn_n_head_v(const llama_hparams & hparams, uint32_t il) {
    const auto * layer = shared_attn_layer(hparams, il);

    return layer ? layer->n_head_v : hparams.n_head_kv(il);
}

uint32_t llama_shared_attn_n_embd_k(const llama_hparams & hparams, uint32_t il) {
    return hparams.n_embd_head_k(il)*llama_shared_attn_n_head_k(hparams, il);
}

uint32_t llama_shared_attn_n_embd_v(const llama_hparams & hparams, uint32_t il) {
    return hparams.n_embd_head_v(il)*llama_shared_attn_n_head_v(hparams, il);
}

bool llama_shared_attn_lacks_qk(const llama_hparams & hparams, uint32_t il) {
    const auto * layer = shared_attn_layer(hparams, il);

    return layer && layer->n_head_q == 0;
}

static bool shared_attn_in_span(const llama_hparams & hparams, uint32_t il) {
    const auto * layer = shared_attn_layer(hparams, il);

    return layer && layer->in_span;
}

// a later layer uses its weights
static bool shared_attn_is_source(const llama_hparams & hparams, uint32_t il) {
    const auto * layer = shared_attn_layer(hparams, il);

    return layer && layer->last > il;
}

// the layer whose weights all heads of a layer use in their order: itself, another one, or -1
static int32_t shared_attn_source_layer(const llama_shared_attn_layer & layer) {
    return layer.runs.size() == 1 && layer.runs[0].head_src == 0 ? layer.runs[0].il_src : -1;
}

// true if the layer has its heads as in the dense model, and all compute their weights or all follow those of a layer
static bool shared_attn_is_whole(const llama_shared_attn_layer & layer) {
    return shared_attn_source_layer(layer) >= 0;
}

// the entries of a layer in a map of heads
static uint32_t shared_attn_n_head_max(const llama_hparams & hparams) {
    uint32_t n_head = 0;
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        n_head = std::max(n_head, hparams.n_head(il));
    }

    return n_head;
}

// what the heads of a layer use, as views: n_rep query heads have one KV head
static std::vector<llama_shared_attn_run> shared_attn_runs(const int32_t * sources, uint32_t n_stride, uint32_t n_head, uint32_t n_rep) {
    std::vector<llama_shared_attn_run> runs;

    for (uint32_t i = 0; i < n_head; ++i) {
        const int32_t  il_src   = sources[i] < 0 ? -1 : sources[i]/(int32_t) n_stride;
        const uint32_t head_src = sources[i] < 0 ?  i : sources[i]%n_stride;

        // within one KV group here and there
        if (i%n_rep != 0 && runs.back().il_src == il_src && head_src%n_rep != 0 && head_src == runs.back().head_src + runs.back().n_head) {
            runs.back().n_head++;
        } else {
            runs.push_back({ i, 1, il_src, head_src });
        }

        // whole KV groups
        if (runs.size() > 1 && runs.back().n_head == n_rep && runs.back().head_src%n_rep == 0) {
            auto & before = runs[runs.size() - 2];
            if (before.il_src == il_src && before.n_head%n_rep == 0 && before.head_src + before.n_head == runs.back().head_src) {
                before.n_head += n_rep;
                runs.pop_back();
            }
        }
    }

    return runs;
}

// check the whole map; key is its name in messages
static std::shared_ptr<const llama_shared_attn_map> shared_attn_map_heads(
        const std::string & key, const llama_hparams & hparams, llm_arch arch, llama_split_mode split_mode,
        std::vector<int32_t> source_heads, bool compact) {
    if (!shared_attn_contains(shared_attn_archs, arch)) {
        throw std::runtime_error(format("%s: shared attention is not supported for this architecture", key.c_str()));
    }

    const uint32_t n_layer  = hparams.n_layer_all;
    const uint32_t n_stride = shared_attn_n_head_max(hparams);

    if (n_layer > LLAMA_MAX_LAYERS || source_heads.size() != (size_t) n_layer*n_stride) {
        throw std::runtime_error(format("%s: has %zu entries, the model has %u layers of %u heads", key.c_str(), source_heads.size(), n_layer, n_stride));
    }

    bool any = false;

    auto map = std::make_shared<llama_shared_attn_map>();

    map->compact = compact;
    map->layers.resize(n_layer);

    for (uint32_t il = 0; il < n_layer; ++il) {
        const int32_t * sources = source_heads.data() + il*n_stride;

        const auto is_own = [&](uint32_t i) { return sources[i] == (int32_t) (il*n_stride + i); };

        bool dense = true;
        for (uint32_t i = 0; i < n_stride; ++i) {
            dense &= is_own(i);
        }

        const uint32_t n_head    = hparams.n_head(il);
        const uint32_t n_head_kv = hparams.n_head_kv(il);

        auto & layer = map->layers[il];

        layer = { n_head, n_head_kv, n_head_kv, il, false, {} };

        if (dense) {
            layer.runs = {{ 0, n_head, (int32_t) il, 0 }};
            continue;
        }

        any = true;

        if (split_mode == LLAMA_SPLIT_MODE_TENSOR) {
            throw std::runtime_error(format("%s: a tensor split may put the heads of layer %u and its source on different devices; use -sm layer",
                key.c_str(), il));
        }

        if (il >= hparams.n_layer()) {
            throw std::runtime_error(format("%s: layer %u: predicts further tokens, so it cannot share", key.c_str(), il));
        }

        if (n_head_kv == 0 || n_head == 0 || n_head%n_head_kv != 0) {
            throw std::runtime_error(format("%s: layer %u: cannot share with %u query heads and %u KV heads", key.c_str(), il, n_head, n_head_kv));
        }

        const uint32_t n_rep = n_head/n_head_kv;

        uint32_t n_own  = 0; // KV groups
        uint32_t n_drop = 0;

        for (uint32_t i = 0; i < n_head; ++i) {
            const int32_t src    = sources[i];
            const int32_t il_src = src < 0 ? -1 : src/(int32_t) n_stride;

            if (src < -1 || il_src > (int32_t) il || (il_src == (int32_t) il && !is_own(i))) {
                throw std::runtime_error(format("%s: layer %u: source %d of head %u is not itself or a head of an earlier layer", key.c_str(), il, src, i));
            }

            // a group is known by its first head
            const uint32_t first   = i - i%n_rep;
            const int32_t  il_src0 = sources[first] < 0 ? -1 : sources[first]/(int32_t) n_stride;

            if (il_src0 != il_src) {
                throw std::runtime_error(format("%s: layer %u: heads %u and %u have one KV head, so they need sources in one layer", key.c_str(), il, first, i));
            }

            if (i == first) {
                n_own  += is_own(i);
                n_drop += src < 0;
            }

            if (src < 0 || is_own(i)) {
                continue;
            }

            if (source_heads[src] != src) {
                throw std::runtime_error(format("%s: layer %u: source %d of head %u does not compute its own attention weights", key.c_str(), il, src, i));
            }

            if (hparams.n_head(il_src)        != n_head                    || src%n_stride >= n_head || hparams.n_head_kv(il_src)     != n_head_kv ||
                hparams.n_embd_head_k(il_src) != hparams.n_embd_head_k(il) || hparams.n_embd_head_v(il_src) != hparams.n_embd_head_v(il)) {
                throw std::runtime_error(format("%s: layer %u: source %d has other attention heads", key.c_str(), il, il_src));
            }

            if (hparams.is_swa(il_src) != hparams.is_swa(il)) {
                throw std::runtime_error(format("%s: layer %u: source %d has another attention window", key.c_str(), il, il_src));
            }

            layer.in_span = map->layers[il_src].in_span = true;

            map->layers[il_src].last = il;
        }

        layer.runs = shared_attn_runs(sources, n_stride, n_head, n_rep);

        if (compact) {
            // first those that compute their weights, last those that are dropped
            const auto order = [&](uint32_t i) { return sources[i] < 0 ? 2 : is_own(i) ? 0 : 1; };

            for (uint32_t i = 1; i < n_head; ++i) {
                if (order(i) < order(i - 1)) {
                    throw std::runtime_error(format("%s: layer %u: head %u must come before head %u: own heads, followers, dropped heads", key.c_str(), il, i, i - 1));
                }
            }

            layer.n_head_q = n_own*n_rep;
            layer.n_head_k = n_own;
            layer.n_head_v = n_head_kv - n_drop;
        } else {
            layer.n_head_q = n_own > 0            ? n_head    : 0;
            layer.n_head_k = n_own > 0            ? n_head_kv : 0;
            layer.n_head_v = n_drop < n_head_kv   ? n_head_kv : 0;
        }

        if (!shared_attn_is_whole(layer)) {
            if (shared_attn_contains(shared_attn_whole_layer_archs, arch)) {
                throw std::runtime_error(format("%s: layer %u: this architecture shares whole layers only", key.c_str(), il));
            }

            if (hparams.f_max_alibi_bias > 0.0f) {
                throw std::runtime_error(format("%s: layer %u: with ALiBi, a head depends on its number, so only whole layers can share", key.c_str(), il));
            }
        }
    }

    map->source_heads = std::move(source_heads);

    return any ? map : nullptr; // what is dense is built as ever
}

// the same for whole layers
static std::shared_ptr<const llama_shared_attn_map> shared_attn_map_layers(
        const llama_hparams & hparams, llm_arch arch, llama_split_mode split_mode, const std::vector<int32_t> & source_layers, bool compact) {
    const std::string key = shared_attn_key(arch, "source_layers");

    if (source_layers.size() != hparams.n_layer_all) {
        throw std::runtime_error(format("%s: has %zu layers, the model has %u", key.c_str(), source_layers.size(), hparams.n_layer_all));
    }

    const int32_t n_stride = shared_attn_n_head_max(hparams);

    if (n_stride < 0 || n_stride > SHARED_ATTN_MAX_HEADS) {
        throw std::runtime_error(format("%s: a layer has %u heads, at most %d can share", key.c_str(), (uint32_t) n_stride, SHARED_ATTN_MAX_HEADS));
    }

    std::vector<int32_t> source_heads;

    for (uint32_t il = 0; il < source_layers.size(); ++il) {
        const int32_t src = source_layers[il];

        if (src < 0 || (uint32_t) src > il) {
            throw std::runtime_error(format("%s: layer %u: source %d is not a layer at or before it", key.c_str(), il, src));
        }

        if (source_layers[src] != src) {
            throw std::runtime_error(format("%s: layer %u: source %d does not compute its own attention weights", key.c_str(), il, src));
        }

        const int32_t n_head = hparams.n_head(il);

        if (src != (int32_t) il && n_head == 0) {
            throw std::runtime_error(format("%s: layer %u: cannot share with 0 query heads and %u KV heads", key.c_str(), il, hparams.n_head_kv(il)));
        }

        for (int32_t i = 0; i < n_stride; ++i) {
            source_heads.push_back(n_stride*(i < n_head ? src : (int32_t) il) + i);
        }
    }

    return shared_attn_map_heads(key, hparams, arch, split_mode, std::move(source_heads), compact);
}

static std::vector<int32_t> shared_attn_array(const gguf_context * meta, const std::string & key) {
    const int64_t kid = gguf_find_key(meta, key.c_str());

    if (gguf_get_kv_type(meta, kid) != GGUF_TYPE_ARRAY || gguf_get_arr_type(meta, kid) != GGUF_TYPE_INT32) {
        throw std::runtime_error(format("%s: must be an array of i32", key.c_str()));
    }

    const int32_t * data = (const int32_t *) gguf_get_arr_data(meta, kid);

    return std::vector<int32_t>(data, data + gguf_get_arr_n(meta, kid));
}

std::shared_ptr<const llama_shared_attn_map> llama_shared_attn_load(
        const llama_hparams & hparams, llm_arch arch, llama_split_mode split_mode, const gguf_context * meta) {
    uint32_t version = 1;

    const int64_t kid_version = gguf_find_key(meta, SHARED_ATTN_KEY_FORMAT_VERSION);
    if (kid_version >= 0) {
        if (gguf_get_kv_type(meta, kid_version) != GGUF_TYPE_UINT32) {
            throw std::runtime_error(format("%s: must be a u32", SHARED_ATTN_KEY_FORMAT_VERSION));
        }

        version = gguf_get_val_u32(meta, kid_version);
        if (version > SHARED_ATTN_FORMAT_VERSION) {
            throw std::runtime_error(format("%s: is %u, this runtime knows up to %d", SHARED_ATTN_KEY_FORMAT_VERSION, version, SHARED_ATTN_FORMAT_VERSION));
        }
    }

    const std::string key_layers = shared_attn_key(arch, "source_layers");
    const std::string key_heads  = shared_attn_key(arch, "source_heads");

    const bool has_layers = gguf_find_key(meta, key_layers.c_str()) >= 0;
    const bool has_heads  = gguf_find_key(meta, key_heads .c_str()) >= 0;

    // so that a file means one thing, also to a runtime that knows version 1 only
    if ((has_layers && version != 1) || (has_heads && version != 2)) {
        throw std::runtime_error(format("%s: is %u, but the file has %s", SHARED_ATTN_KEY_FORMAT_VERSION, version,
            has_layers ? key_layers.c_str() : key_heads.c_str()));
    }

    std::shared_ptr<const llama_shared_attn_map> map;

    if (has_layers) {
        map = shared_attn_map_layers(hparams, arch, split_mode, shared_attn_array(meta, key_layers), true);
    } else if (has_heads) {
        map = shared_attn_map_heads(key_heads, hparams, arch, split_mode, shared_attn_array(meta, key_heads), true);
    }

    for (uint32_t il = 0; map && il < map->layers.size(); ++il) {
        const auto & layer = map->layers[il];
        const int32_t src = shared_attn_source_layer(layer);

        if (src >= 0 && src != (int32_t) il) {
            LLAMA_LOG_INFO("%s: layer %3u reuses the attention weights of layer %3d\n", __func__, il, src);
        } else if (src < 0) {
            LLAMA_LOG_INFO("%s: layer %3u computes %u of %u KV heads, %u reuse attention weights, %u are dropped\n", __func__, il,
                layer.n_head_k, hparams.n_head_kv(il), layer.n_head_v - layer.n_head_k, hparams.n_head_kv(il) - layer.n_head_v);
        }
    }

    return map;
}

void llama_shared_attn_save(const llama_hparams & hparams, llm_arch arch, gguf_context * meta) {
    if (!hparams.shared_attn) {
        return;
    }

    const auto & map = *hparams.shared_attn;

    std::vector<int32_t> source_layers;
    for (const auto & layer : map.layers) {
        source_layers.push_back(shared_attn_source_layer(layer));
    }

    const bool whole = std::all_of(map.layers.begin(), map.layers.end(), shared_attn_is_whole);

    if (!whole && !map.compact) {
        throw std::runtime_error("a model that tries out a map of heads cannot be saved");
    }

    const auto & values = whole ? source_layers : map.source_heads;

    gguf_set_arr_data(meta, shared_attn_key(arch, whole ? "source_layers" : "source_heads").c_str(), GGUF_TYPE_INT32, values.data(), values.size());
    gguf_set_val_u32 (meta, SHARED_ATTN_KEY_FORMAT_VERSION, whole ? 1 : 2);
}

// some tensors have no suffix
static bool shared_attn_is(const LLM_TN_IMPL & tn, const char * suffix) {
    return tn.suffix && strcmp(tn.suffix, suffix) == 0;
}

int llama_shared_attn_tensor_flags(const llama_hparams & hparams, const LLM_TN_IMPL & tn) {
    const auto * layer = tn.bid < 0 ? nullptr : shared_attn_layer(hparams, tn.bid);

    const bool lacks_qk = layer && layer->n_head_q == 0 &&
        std::find(shared_attn_qk_tensors.begin(), shared_attn_qk_tensors.end(), tn.tensor) != shared_attn_qk_tensors.end();

    // the bias of the output projection is still added
    const bool lacks_v = layer && layer->n_head_v == 0 &&
        (tn.tensor == LLM_TENSOR_ATTN_V || tn.tensor == LLM_TENSOR_ATTN_QKV || (tn.tensor == LLM_TENSOR_ATTN_OUT && !shared_attn_is(tn, "bias")));

    if (!lacks_qk && !lacks_v) {
        return 0;
    }

    return llama_model_loader::TENSOR_NOT_REQUIRED | llama_model_loader::TENSOR_SKIP | llama_model_loader::TENSOR_SKIP_IF_VIRTUAL;
}

std::array<int64_t, 2> llama_shared_attn_shape(const llama_hparams & hparams, const LLM_TN_IMPL & tn, const std::initializer_list<int64_t> & ne) {
    std::array<int64_t, 2> res = { *ne.begin(), ne.size() == 2 ? ne.begin()[1] : 1 };

    const auto * layer = tn.bid < 0 ? nullptr : shared_attn_layer(hparams, tn.bid);

    if (!layer || ne.size() > 2 || (!shared_attn_is(tn, "weight") && !shared_attn_is(tn, "bias"))) {
        return res;
    }

    const int64_t n_head    = hparams.n_head(tn.bid);
    const int64_t n_head_kv = hparams.n_head_kv(tn.bid);
    const int64_t n_rep     = n_head_kv > 0 ? n_head/n_head_kv : 0;

    int64_t & n_out = res[ne.size() - 1]; // rows of a weight, or elements of a bias

    if (llama_shared_attn_tensor_flags(hparams, tn) != 0) {
        return res; // it may be there, but is not loaded
    }

    switch (tn.tensor) {
        case LLM_TENSOR_ATTN_SINKS:
        case LLM_TENSOR_ATTN_Q:
            n_out = n_out/n_head*layer->n_head_q;
            break;
        case LLM_TENSOR_ATTN_K:
            n_out = n_out/n_head_kv*layer->n_head_k;
            break;
        case LLM_TENSOR_ATTN_V:
            n_out = n_out/n_head_kv*layer->n_head_v;
            break;
        case LLM_TENSOR_ATTN_QKV:
            n_out = (int64_t) hparams.n_embd_head_k(tn.bid)*(layer->n_head_q + layer->n_head_k) + (int64_t) hparams.n_embd_head_v(tn.bid)*layer->n_head_v;
            break;
        case LLM_TENSOR_ATTN_Q_NORM: // of each head
            n_out = ne.size() == 2 ? (int64_t) layer->n_head_q : n_out;
            break;
        case LLM_TENSOR_ATTN_K_NORM:
            n_out = ne.size() == 2 ? (int64_t) layer->n_head_k : n_out;
            break;
        case LLM_TENSOR_ATTN_OUT:
            res[0] = ne.size() == 2 ? res[0]/n_head*n_rep*layer->n_head_v : res[0];
            break;
        default:
            break;
    }

    return res;
}

bool llama_shared_attn_needs_v(const llama_hparams & hparams, const LLM_TN_IMPL & tn, int flags) {
    return tn.tensor == LLM_TENSOR_ATTN_QKV && llama_shared_attn_lacks_qk(hparams, tn.bid) && llama_shared_attn_n_head_v(hparams, tn.bid) > 0 &&
        (shared_attn_is(tn, "bias") || !(flags & llama_model_loader::TENSOR_NOT_REQUIRED));
}

void llama_shared_attn_check_lora(const llama_model & model, const std::string & name) {
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        for (const llm_tensor tensor : { LLM_TENSOR_ATTN_Q, LLM_TENSOR_ATTN_K, LLM_TENSOR_ATTN_V, LLM_TENSOR_ATTN_QKV, LLM_TENSOR_ATTN_OUT }) {
            const auto tn = LLM_TN(model.arch)(tensor, "weight", il);
            if (name != tn.str() || llama_shared_attn_tensor_flags(model.hparams, tn) == 0) {
                continue;
            }

            const int32_t src = shared_attn_source_layer(model.hparams.shared_attn->layers[il]);

            throw std::runtime_error(src >= 0 ?
                format("LoRA tensor '%s': layer %u reuses the attention weights of layer %d, so it has no Q and K to adapt", name.c_str(), il, src) :
                format("LoRA tensor '%s': no attention head of layer %u is left that would use it", name.c_str(), il));
        }
    }
}

uint32_t llama_shared_attn_n_nodes(const llama_hparams & hparams) {
    uint32_t n_runs = 0;

    for (uint32_t il = 0; hparams.shared_attn && il < hparams.shared_attn->layers.size(); ++il) {
        n_runs += hparams.shared_attn->layers[il].runs.size();
    }

    return 24*n_runs; // views, the products, and the softmax that a follower does not use
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

    if (model.hparams.shared_attn) {
        res.hybrid = shared_attn_env("LLAMA_SHARED_ATTN_HYBRID",  "0 or 1",            1,              0);
        res.budget = shared_attn_env("LLAMA_SHARED_ATTN_P_BYTES", "a number of bytes", UINT64_MAX - 1, UINT64_MAX);
    } else {
        res.dense  = shared_attn_env("LLAMA_SHARED_ATTN_DENSE",   "0 or 1",            1,              0) != 0 &&
            shared_attn_contains(shared_attn_archs, model.arch);
    }

    return res;
}

// of the probabilities between our kernels
static ggml_type shared_attn_probs_type(ggml_type type_v) {
    return type_v == GGML_TYPE_F32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
}

// bytes of the probabilities of one token over n_kv positions, in those layers for which uses(il) holds
// only those count that a later layer uses; spans may overlap, so it is the most that is alive at any layer
static uint64_t shared_attn_bytes(const llama_hparams & hparams, uint64_t n_kv, ggml_type type_v, const std::function<bool(uint32_t il)> & uses) {
    uint64_t n_bytes = 0;

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        uint64_t alive = 0;
        for (uint32_t src = 0; src <= il; ++src) {
            if (shared_attn_is_source(hparams, src) && shared_attn_layer(hparams, src)->last >= il && uses(src)) {
                alive += shared_attn_layer(hparams, src)->n_head_q*n_kv*ggml_type_size(shared_attn_probs_type(type_v));
            }
        }
        n_bytes = std::max(n_bytes, alive);
    }

    return n_bytes;
}

//
// graph
//

void llama_shared_attn_n_heads(const llama_hparams & hparams, int il, int64_t & n_head_q, int64_t & n_head_k, int64_t & n_head_v) {
    const auto * layer = shared_attn_layer(hparams, il);

    if (layer && hparams.shared_attn->compact) {
        n_head_q = layer->n_head_q;
        n_head_k = layer->n_head_k;
        n_head_v = layer->n_head_v;
    }
}

static ggml_tensor * shared_attn_zeros(const llm_graph_context & g, int64_t n_embd, int64_t n_head) {
    return ggml_fill(g.ctx0, ggml_new_tensor_3d(g.ctx0, GGML_TYPE_F32, n_embd, n_head, g.n_tokens), 0.0f);
}

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
    const bool has_v = llama_shared_attn_n_head_v(g.hparams, il) > 0;

    ggml_tensor * q = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n_embd_head_q*n_head_q, g.n_tokens);
    ggml_tensor * k = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n_embd_head_k*n_head_k, g.n_tokens);
    ggml_tensor * v = has_v
        ? g.build_lora_mm(layer.wv, cur, layer.wv_s)
        : ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n_embd_head_v*n_head_v, g.n_tokens);

    if (has_v && layer.wv_b) {
        v = ggml_add(g.ctx0, v, layer.wv_b);
    }

    if (reshape) {
        if (g.hparams.f_clamp_kqv > 0.0f) {
            v = ggml_clamp(g.ctx0, v, -g.hparams.f_clamp_kqv, g.hparams.f_clamp_kqv);
        }

        q = ggml_reshape_3d(g.ctx0, q, n_embd_head_q, q->ne[0]/n_embd_head_q, g.n_tokens);
        k = ggml_reshape_3d(g.ctx0, k, n_embd_head_k, k->ne[0]/n_embd_head_k, g.n_tokens);
        v = ggml_reshape_3d(g.ctx0, v, n_embd_head_v, v->ne[0]/n_embd_head_v, g.n_tokens);
        g.cb(v, "Vcur", il);
    }

    return { q, k, v };
}

void llama_shared_attn_replace_qkv(const llm_graph_context & g, ggml_tensor * & q, ggml_tensor * & k, ggml_tensor * & v, int il) {
    if (!llama_shared_attn_lacks_qk(g.hparams, il)) {
        return;
    }

    if (llama_shared_attn_n_head_v(g.hparams, il) == 0) {
        q = k = v = shared_attn_zeros(g, 1, 1);
        return;
    }

    for (const auto & run : g.hparams.shared_attn->layers[il].runs) {
        if (run.il_src >= 0) {
            const auto & src = g.shared_attn.srcs[run.il_src];
            q = src.q;
            k = src.k;
            return;
        }
    }
}

bool llama_shared_attn_has_runs(const llm_graph_context & g, int il) {
    const auto * layer = shared_attn_layer(g.hparams, il);

    return layer && !g.shared_attn.run && (layer->in_span || !shared_attn_is_whole(*layer));
}

// some heads of a tensor that has them in the first dimension
static ggml_tensor * shared_attn_heads_1st(const llm_graph_context & g, ggml_tensor * x, uint32_t head, uint32_t n_head) {
    return !x || x->ne[0] == n_head ? x : ggml_view_1d(g.ctx0, x, n_head, head*x->nb[0]);
}

// in the second
static ggml_tensor * shared_attn_heads(const llm_graph_context & g, ggml_tensor * x, uint32_t head, uint32_t n_head) {
    if (!x || (head == 0 && x->ne[1] == n_head)) {
        return x;
    }

    return ggml_view_4d(g.ctx0, x, x->ne[0], n_head, x->ne[2], x->ne[3], x->nb[1], x->nb[2], x->nb[3], head*x->nb[1]);
}

// in the third
static ggml_tensor * shared_attn_heads_3rd(const llm_graph_context & g, ggml_tensor * x, uint32_t head, uint32_t n_head) {
    if (!x || (head == 0 && x->ne[2] == n_head)) {
        return x;
    }

    return ggml_view_4d(g.ctx0, x, x->ne[0], x->ne[1], n_head, x->ne[3], x->nb[1], x->nb[2], x->nb[3], head*x->nb[2]);
}

ggml_tensor * llama_shared_attn_build_mha(
        const llm_graph_context & g,
              ggml_tensor * q,
              ggml_tensor * k,
              ggml_tensor * v,
              ggml_tensor * kq_b,
              ggml_tensor * kq_mask,
              ggml_tensor * sinks,
              ggml_tensor * v_mla,
                  int64_t   n_kv_max,
                    float   kq_scale,
                      int   il) {
    const auto & map   = *g.hparams.shared_attn;
    const auto & layer = map.layers[il];

    const uint32_t n_head = g.hparams.n_head(il);
    const uint32_t n_rep  = n_head/g.hparams.n_head_kv(il);
    const int64_t  n_embd = g.hparams.n_embd_head_v(il);

    GGML_ASSERT(!v_mla);

    if (g.cparams.training && !shared_attn_is_whole(layer)) {
        throw std::runtime_error(format("layer %d: training works with whole layers only, and single KV groups of this one share or are dropped", il));
    }

    // KV heads of the query heads from head on
    const auto kv_heads = [&](ggml_tensor * x, uint32_t head, uint32_t n) {
        return shared_attn_heads(g, x, head/n_rep, std::max(1u, n/n_rep));
    };

    const auto build = [&](const llama_shared_attn_run & run, const llama_shared_attn_src & src) {
        g.shared_attn.run = &run;
        ggml_tensor * res = g.build_attn_mha(
                shared_attn_heads(g, src.q, run.head_src, run.n_head),
                kv_heads(src.k, run.head_src, run.n_head),
                kv_heads(v,     run.head,     run.n_head),
                shared_attn_heads_3rd(g, src.kq_b, run.head_src, run.n_head), kq_mask,
                shared_attn_heads_1st(g, src.sinks, run.head_src, run.n_head),
                v_mla, n_kv_max, kq_scale, il);
        g.shared_attn.run = nullptr;
        return res;
    };

    ggml_tensor * own = nullptr; // of all heads whose Q the layer has

    if (layer.n_head_q > 0) {
        const llama_shared_attn_run all = { 0, layer.n_head_q, il, 0 };

        g.shared_attn.srcs[il] = { q, k, kq_b, sinks, nullptr };

        own = build(all, { q, k, kq_b, sinks, nullptr });
    }

    ggml_tensor * cur = nullptr;

    for (const auto & run : layer.runs) {
        ggml_tensor * part;

        if (run.il_src == il) {
            part = run.n_head == layer.n_head_q ? own :
                ggml_view_2d(g.ctx0, own, n_embd*run.n_head, own->ne[1], own->nb[1], ggml_row_size(own->type, n_embd*run.head));
        } else if (run.il_src >= 0) {
            part = build(run, g.shared_attn.srcs[run.il_src]);
        } else if (!map.compact) {
            part = ggml_reshape_2d(g.ctx0, shared_attn_zeros(g, n_embd, run.n_head), n_embd*run.n_head, g.n_tokens);
        } else {
            continue; // the output projection has no columns for it
        }

        cur = cur ? ggml_concat(g.ctx0, cur, part, 0) : part;
    }

    if (!cur) {
        // no output projection is left, but its bias may be
        cur = ggml_reshape_2d(g.ctx0, shared_attn_zeros(g, g.n_embd, 1), g.n_embd, g.n_tokens);
    }

    ggml_build_forward_expand(g.gf, cur);

    return cur;
}

// an encoder has no cache whose saving could be spent on probabilities, so it recomputes them unless it gets a budget
static bool shared_attn_encoder_reuses(const llm_graph_context & g, int il) {
    if (!g.hparams.shared_attn || !llama_shared_attn_kernel_available()) {
        return false;
    }

    const auto & params = g.cparams.shared_attn;

    const auto uses = [&](uint32_t i) {
        return !params.hybrid || shared_attn_in_span(g.hparams, i);
    };

    return params.budget != UINT64_MAX && uses(il) &&
        g.n_tokens*shared_attn_bytes(g.hparams, g.n_tokens, GGML_TYPE_F32, uses) <= params.budget;
}

bool llama_shared_attn_computes(const llm_graph_context & g, int il) {
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

    return kv && (shared_attn_in_span(g.hparams, il) ? kv->reuse && g.n_tokens <= kv->n_ubatch_max : kv->kernels);
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
    const bool reuses = llama_shared_attn_computes(g, il);

    if (!g.hparams.shared_attn && !reuses) {
        return probs;
    }

    const auto * run = g.shared_attn.run;

    if (run && run->il_src != il) {
        return shared_attn_heads_3rd(g, g.shared_attn.srcs[run->il_src].probs, run->head_src, run->n_head);
    }

    if (reuses && !kq_b) {
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

    g.shared_attn.srcs[il].probs = probs;

    return probs;
}

ggml_tensor * llama_shared_attn_build_kqv(const llm_graph_context & g, ggml_tensor * v, ggml_tensor * probs, int il) {
    if (!llama_shared_attn_computes(g, il)) {
        return ggml_mul_mat(g.ctx0, v, probs);
    }

    if (!shared_attn_in_span(g.hparams, il) && llama_shared_attn_kernel_fuses(probs)) {
        return llama_shared_attn_kernel_fused(g.ctx0, probs, v);
    }

    return llama_shared_attn_kernel_pv(g.ctx0, probs, v);
}

//
// KV cache
//

// the least ubatch that is worth reusing the probabilities for
static const uint32_t SHARED_ATTN_N_UBATCH_MIN = 64;

// bytes that a layer saves of the K and V caches, per position
static uint64_t shared_attn_saving(const llama_hparams & hparams, ggml_type type_k, ggml_type type_v, uint32_t il) {
    const uint32_t n_head_kv = hparams.n_head_kv(il);

    return ggml_row_size(type_k, hparams.n_embd_head_k(il)*(n_head_kv - llama_shared_attn_n_head_k(hparams, il))) +
           ggml_row_size(type_v, hparams.n_embd_head_v(il)*(n_head_kv - llama_shared_attn_n_head_v(hparams, il)));
}

// the caches of a context that a budget is for: layers with a sliding window have one of their own
static uint64_t shared_attn_n_caches(const llama_hparams & hparams) {
    bool any[2] = {};
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        any[hparams.is_swa(il)] |= shared_attn_is_source(hparams, il);
    }

    return any[0] + any[1];
}

// a span that lies on several devices has its K cache on the first of them
static void shared_attn_log_devices(const llama_model & model, const llama_hparams & hparams, const llama_shared_attn_filter & filter) {
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        for (const auto & run : hparams.shared_attn->layers[il].runs) {
            const uint32_t src = run.il_src < 0 ? il : run.il_src;

            if ((filter && !filter(il)) || model.dev_layer(il) == model.dev_layer(src)) {
                continue;
            }

            const uint32_t last = hparams.shared_attn->layers[src].last;

            const bool src_on_cpu = ggml_backend_dev_type(model.dev_layer(src)) == GGML_BACKEND_DEVICE_TYPE_CPU;

            LLAMA_LOG_WARN("%s: layers %u and %u of a span are on different devices, so the K cache is copied for each ubatch; %s\n", __func__, src, il,
                    src_on_cpu ? format("-ngl %u or -ngl %u keeps the span together", hparams.n_layer_all - last, hparams.n_layer_all + 1 - src).c_str()
                               : "another -ts keeps the span together");
            return;
        }
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

    const llama_shared_attn_params params = llama_shared_attn_init(model);

    if (!hparams.shared_attn && !params.dense) {
        return res;
    }

    if (offload && hparams.shared_attn) {
        shared_attn_log_devices(model, hparams, filter);
    }

    // without flash attention there is nothing to choose
    if (v_trans || !llama_shared_attn_kernel_available()) {
        return res;
    }

    const auto uses = [&](uint32_t il) {
        return hparams.has_kv(il) && (!filter || filter(il)) && (!params.hybrid || shared_attn_in_span(hparams, il));
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

        saving += shared_attn_saving(hparams, type_k, type_v, il)*n_cells*n_stream;
    }

    const uint32_t n_kv_pad = 64; // a graph is built anew for each, but that takes less than a millisecond

    if (!params.hybrid) {
        res.kernels  = true;
        res.n_kv_pad = n_kv_pad;
    }

    const uint64_t n_bytes = shared_attn_bytes(hparams, n_cells, type_v, uses);

    if (n_bytes == 0) {
        LLAMA_LOG_INFO("%s: %s compute the attention\n", __func__, res.kernels ? "kernels of shared attention" : "operators of ggml");
        return res;
    }

    const uint64_t budget   = params.budget == UINT64_MAX ? saving : params.budget/shared_attn_n_caches(hparams);
    const uint64_t n_ubatch = std::min<uint64_t>(budget/n_bytes, UINT32_MAX);

    if (n_ubatch < SHARED_ATTN_N_UBATCH_MIN) {
        LLAMA_LOG_INFO("%s: followers recompute the attention weights: those of %u tokens take %.2f MiB of %.2f MiB\n", __func__,
                SHARED_ATTN_N_UBATCH_MIN, SHARED_ATTN_N_UBATCH_MIN*n_bytes/1024.0/1024.0, budget/1024.0/1024.0);
        return res;
    }

    res.reuse        = true;
    res.n_kv_pad     = n_kv_pad;
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

    const auto * layer = shared_attn_layer(model->hparams, il);

    return layer ? shared_attn_source_layer(*layer) : il;
}

int32_t llama_model_shared_attn_source_head(const llama_model * model, int32_t il, int32_t i) {
    const int32_t n_stride = shared_attn_n_head_max(model->hparams);

    if (il < 0 || (uint32_t) il >= model->hparams.n_layer_all || i < 0 || (uint32_t) i >= model->hparams.n_head(il)) {
        return -1;
    }

    return model->hparams.shared_attn ? model->hparams.shared_attn->source_heads[n_stride*il + i] : n_stride*il + i;
}

static bool shared_attn_try(llama_model * model, const char * func, const std::function<std::shared_ptr<const llama_shared_attn_map>()> & make) {
    try {
        if (model->shared_attn_hold.use_count() > 1) {
            throw std::runtime_error("a context of the model exists, and its KV cache was made from the map as it is");
        }

        const auto map = make();

        // the tensors of the model must have the heads that its map needs now
        for (uint32_t il = 0; il < model->hparams.n_layer_all; ++il) {
            const auto * loaded = shared_attn_layer(model->hparams, il);

            if (!loaded || shared_attn_is_whole(*loaded)) {
                const auto & layer = model->layers[il];
                if ((!map || map->layers[il].n_head_q > 0) && model->hparams.n_head_kv(il) > 0 && !layer.wqkv && !(layer.wq && layer.wk)) {
                    throw std::runtime_error(format("layer %u cannot compute its own attention weights: the model has no Q and K for it", il));
                }
            } else if (model->hparams.shared_attn->compact) {
                throw std::runtime_error(format("layer %u: the model lacks heads, so its map cannot change", il));
            }
        }

        model->shared_attn         = map;
        model->hparams.shared_attn = map.get();
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", func, err.what());
        return false;
    }

    return true;
}

bool llama_model_shared_attn_set(llama_model * model, const int32_t * source_layers, size_t n_layers) {
    return shared_attn_try(model, __func__, [&]() {
        return shared_attn_map_layers(model->hparams, model->arch, model->split_mode(),
            std::vector<int32_t>(source_layers, source_layers + n_layers), false);
    });
}

bool llama_model_shared_attn_set_heads(llama_model * model, const int32_t * source_heads, size_t n) {
    return shared_attn_try(model, __func__, [&]() {
        return shared_attn_map_heads("source_heads", model->hparams, model->arch, model->split_mode(),
            std::vector<int32_t>(source_heads, source_heads + n), false);
    });
}
