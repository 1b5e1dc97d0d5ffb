#include "llama-shared-attn-kernel.h"

#include "llama-shared-attn-simd.h"

#include "ggml-backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

bool llama_shared_attn_kernel_available(void) {
#ifdef SHARED_ATTN_SIMD
    return true;
#else
    return false;
#endif
}

#ifdef SHARED_ATTN_SIMD

// positions of K or V that are worked on at a time: 256 KiB as f32 with heads of 128 elements
static constexpr int64_t N_BLOCK = 512;

// from so many rows per KV head on, it pays to work on tiles of rows, which have K and V in the order they like
static constexpr int64_t N_ROWS_TILE = 16;

// from so many rows on, converting K and V for them costs next to nothing
static constexpr int64_t N_ROWS_PART = 128;

// few rows: parts that the positions are divided into for the threads, and the least positions of a part
static constexpr int64_t N_PARTS_MAX = 32;
static constexpr int64_t N_PART_MIN  = 64;

// rows of one stream, those of a KV head together and token major: row = (i_head_kv*n_tokens + token)*n_rep + i_rep
struct shared_attn_rows {
    const ggml_tensor * v;   // null where the weights are computed alone
          ggml_tensor * kqv;

    int64_t n_tokens;
    int64_t n_rep;
    int64_t i_stream;

    int64_t n_per_head()         const { return n_tokens*n_rep; }
    int64_t token(int64_t row)   const { return row/n_rep%n_tokens; }
    int64_t head_kv(int64_t row) const { return row/n_per_head(); }
    int64_t head(int64_t row)    const { return head_kv(row)*n_rep + row%n_rep; }

    static char * at(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
        return (char *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3];
    }

    const char  * v_row  (int64_t i_head_kv, int64_t pos) const { return at(v, pos, i_head_kv, i_stream); }
          float * kqv_row(int64_t row)                    const { return (float *) at(kqv, token(row), head(row), i_stream); }
};

//
// the weights
//

// what a part of the positions comes to: for each row the sum of V, relative to the maximum of the scores, that maximum,
// and the sum of the weights
struct shared_attn_part {
    float * data;
    int64_t n_embd;

    float * sums(int64_t row) const { return data + row*(n_embd + 2); }
    float & max (int64_t row) const { return sums(row)[n_embd]; }
    float & sum (int64_t row) const { return sums(row)[n_embd + 1]; }
};

struct shared_attn_task : shared_attn_rows {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
          ggml_tensor * probs; // null where the product with V is computed, too

    float scale;
    float max_bias;
    float softcap;

    int64_t row0;
    int64_t row1;

    // of few rows and the product with V: the positions, and what they come to
    int64_t pos0;
    int64_t pos1;
    shared_attn_part part;

    const float * q_row   (int64_t row)                    const { return (const float *) at(q, token(row), head(row), i_stream); }
    const char  * k_row   (int64_t i_head_kv, int64_t pos) const { return at(k, pos, i_head_kv, i_stream); }
    const char  * mask_row(int64_t row, int64_t pos)       const { return at(mask, token(row), 0, i_stream%mask->ne[3]) + pos*mask->nb[0]; }
          char  * probs_row(int64_t row, int64_t pos)      const { return at(probs, token(row), head(row), i_stream) + pos*probs->nb[0]; }

    float slope(int64_t row) const {
        if (max_bias <= 0.0f) {
            return 1.0f;
        }

        const uint32_t n_head_log2 = 1u << (uint32_t) std::floor(std::log2(q->ne[2]));

        return head(row) < n_head_log2
            ? std::pow(2.0f, -max_bias/n_head_log2*(head(row) + 1))
            : std::pow(2.0f, -max_bias/n_head_log2*(head(row) - n_head_log2 + 0.5f));
    }

    bool is_masked(const char * mask_row, int64_t i) const {
        return mask->type == GGML_TYPE_F16 ? ((const uint16_t *) mask_row)[i] == 0xfc00 : ((const float *) mask_row)[i] == -INFINITY;
    }

    // how many of n positions there are up to the last one that any of the rows attends to
    int64_t n_attended(int64_t r0, int64_t r1, int64_t pos, int64_t n) const {
        int64_t res = 0;

        for (int64_t row = r0; row < r1; ++row) {
            if (row > r0 && token(row) == token(row - 1)) {
                continue;
            }
            const char * m = mask_row(row, pos);
            int64_t i = n;
            while (i > res && is_masked(m, i - 1)) {
                --i;
            }
            res = i;
        }

        return res;
    }
};

template <typename V, int MR, int NV>
struct shared_attn_weights : shared_attn_simd<V, MR, NV> {
    using simd = shared_attn_simd<V, MR, NV>;
    using vf   = typename V::vf;
    using vi   = typename V::vi;

    using simd::VW;
    using simd::N_PANEL;
    using simd::load;
    using simd::store;

    const shared_attn_task & task;

    const int64_t n_embd_head = task.k->ne[0];
    const int64_t n_embd_pad  = simd::pad_vec(n_embd_head);
    const int64_t n_kv        = task.k->ne[1];
    const int64_t n_rows      = task.row1 - task.row0;
    const int64_t n_block     = (n_kv + N_BLOCK - 1)/N_BLOCK;

    // of each row: the maximum of each block, of all so far, and the sum relative to that
    shared_attn_floats max_block = shared_attn_floats(n_rows*n_block, -INFINITY);
    shared_attn_floats max       = shared_attn_floats(n_rows, -INFINITY);
    shared_attn_floats sum       = shared_attn_floats(n_rows, 0.0f);

    shared_attn_floats mask      = shared_attn_floats(N_BLOCK);
    int64_t            mask_of   = -1; // the token and position that it is of

    SHARED_ATTN_INLINE explicit shared_attn_weights(const shared_attn_task & task) : task(task) {}

    // e^x for x <= 0, exactly 0 below e^-80; a NaN stays one
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
    SHARED_ATTN_INLINE void pack(int64_t pos, int64_t n, float * rows, float * panel) const {
        simd::unpack(task.k->type, task.k_row(task.head_kv(task.row0), pos), task.k->nb[1], n, n_kv - pos - n, n_embd_head, rows, n_embd_head);
        std::fill(rows + n*n_embd_head, rows + N_PANEL*n_embd_head, 0.0f);

        for (int64_t d = 0; d < n_embd_head; ++d) {
            for (int64_t j = 0; j < N_PANEL; ++j) {
                panel[d*N_PANEL + j] = rows[j*n_embd_head + d];
            }
        }
    }

    // scores become e^(score - max), where max becomes theirs if that is larger; returns their sum. n is a multiple of VW
    SHARED_ATTN_INLINE void softmax(float * scores, float slope, int64_t n, float & max, float & sum) const {
        vf vmax = vf{} + max;
        vf vsum = {};

        for (int64_t i = 0; i < n; i += VW) {
            vf s, m;
            load(s, scores + i);
            load(m, mask.data() + i);
            if (task.softcap != 0.0f) {
                // tanh(x) = sign(x)*(1 - e)/(1 + e), e = exp(-2*|x|)
                const vf x = s/task.softcap;
                vf e;
                exp(-2.0f*(x < 0.0f ? -x : x), e);
                const vf t = (1.0f - e)/(1.0f + e);
                s = task.softcap*(x < 0.0f ? -t : t);
            }
            s += slope*m;
            vmax = s < vmax ? vmax : s; // a NaN must not be lost where there is nothing else
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

        sum = V::sum(vsum);
    }

    // the mask of a row and n positions, and -INFINITY beyond
    SHARED_ATTN_INLINE void load_mask(int64_t row, int64_t pos, int64_t n) {
        if (mask_of != task.token(row)*n_kv + pos) {
            mask_of  = task.token(row)*n_kv + pos;
            to_f32<V>(task.mask->type, task.mask_row(row, pos), mask.data(), n);
            std::fill(mask.begin() + n, mask.end(), -INFINITY);
        }
    }

    // the scores of a row and a block become its probabilities, relative to the maximum of the block
    SHARED_ATTN_INLINE void add_block(int64_t ir, int64_t ib, int64_t n, float * scores) {
        const int64_t row = task.row0 + ir;

        load_mask(row, ib*N_BLOCK, n);

        float & max_b = max_block[ir*n_block + ib];
        float   sum_b = 0.0f;

        softmax(scores, task.slope(row), (n + VW - 1)/VW*VW, max_b, sum_b);
        if (max_b == -INFINITY) {
            return;
        }

        from_f32<V>(task.probs->type, scores, task.probs_row(row, ib*N_BLOCK), n);

        const float max_new = std::max(max[ir], max_b);
        sum[ir] = sum[ir]*expf(max[ir] - max_new) + sum_b*expf(max_b - max_new);
        max[ir] = max_new;
    }

    SHARED_ATTN_INLINE void add_sink(int64_t ir) {
        if (task.sinks) {
            const float sink    = ((const float *) task.sinks->data)[task.head(task.row0 + ir)];
            const float max_new = std::max(max[ir], sink);
            sum[ir] = sum[ir]*expf(max[ir] - max_new) + expf(sink - max_new);
            max[ir] = max_new;
        }
    }

    // the blocks of a row are relative to their own maximum: bring them to that of the row, and the sum to 1
    SHARED_ATTN_INLINE void finish() {
        shared_attn_floats buf(N_BLOCK);

        for (int64_t ir = 0; ir < n_rows; ++ir) {
            const int64_t row = task.row0 + ir;

            add_sink(ir);

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

                to_f32<V>(task.probs->type, probs, buf.data(), n);
                for (int64_t i = 0; i < n; ++i) {
                    buf[i] *= factor;
                }
                from_f32<V>(task.probs->type, buf.data(), probs, n);
            }
        }
    }

    // many rows of one KV head: K is brought into an order in which a tile of scores is computed at once
    struct tiles {
        shared_attn_floats panels;
        shared_attn_floats k_rows;
        shared_attn_floats q_tile;
        shared_attn_floats scores; // [MR][N_BLOCK]

        explicit tiles(int64_t n_embd_head) :
            panels(N_BLOCK*n_embd_head), k_rows(N_PANEL*n_embd_head), q_tile(n_embd_head*MR), scores(MR*N_BLOCK) {}
    };

    SHARED_ATTN_INLINE void pack_block(int64_t pos0, int64_t n, tiles & t) const {
        for (int64_t i = 0; i < n; i += N_PANEL) {
            pack(pos0 + i, std::min(N_PANEL, n - i), t.k_rows.data(), t.panels.data() + i*n_embd_head);
        }
    }

    SHARED_ATTN_INLINE void score_tile(int64_t ir, int64_t n_tile, int64_t n, tiles & t) const {
        for (int64_t r = 0; r < n_tile; ++r) {
            const float * q_row = task.q_row(task.row0 + ir + r);
            for (int64_t d = 0; d < n_embd_head; ++d) {
                t.q_tile[d*MR + r] = q_row[d]*task.scale;
            }
        }

        for (int64_t i = 0; i < n; i += N_PANEL) {
            simd::template tile<false>(t.q_tile.data(), MR, 1, t.panels.data() + i*n_embd_head, N_PANEL, n_embd_head, t.scores.data() + i, N_BLOCK);
        }
    }

    SHARED_ATTN_INLINE void run_tiles() {
        tiles t(n_embd_head);

        for (int64_t ib = 0; ib < n_block; ++ib) {
            const int64_t pos0 = ib*N_BLOCK;
            const int64_t n    = std::min(N_BLOCK, n_kv - pos0);

            bool packed = false;

            for (int64_t ir = 0; ir < n_rows; ir += MR) {
                const int64_t n_tile = std::min<int64_t>(MR, n_rows - ir);

                if (task.n_attended(task.row0 + ir, task.row0 + ir + n_tile, pos0, n) == 0) {
                    continue;
                }

                if (!packed) {
                    pack_block(pos0, n, t);
                    packed = true;
                }

                score_tile(ir, n_tile, n, t);

                for (int64_t r = 0; r < n_tile; ++r) {
                    add_block(ir + r, ib, n, t.scores.data() + r*N_BLOCK);
                }
            }
        }

        finish();
    }

    // the scores of a row become its probabilities, relative to the maximum so far, as are the sums of V that it has
    SHARED_ATTN_INLINE void add_scores(int64_t ir, int64_t n, float * scores, float * sums, int64_t n_embd) {
        const float max_old = max[ir];

        float sum_new = 0.0f;

        softmax(scores, task.slope(task.row0 + ir), n, max[ir], sum_new);

        if (max[ir] == -INFINITY) {
            std::fill(scores, scores + n, 0.0f);
        } else if (max[ir] != max_old) {
            const float factor = expf(max_old - max[ir]);

            sum[ir] *= factor;
            for (int64_t d = 0; d < n_embd; ++d) {
                sums[d] *= factor;
            }
        }

        sum[ir] += sum_new;
    }

    // the product with V as well, where nothing else needs the weights: a block of them is used up before the next one
    SHARED_ATTN_INLINE void run_fused() {
        const int64_t n_embd_head_v = task.v->ne[0];
        const int64_t n_embd_v_pad  = simd::pad(n_embd_head_v);
        const int64_t i_head_kv     = task.head_kv(task.row0);

        tiles t(n_embd_head);

        shared_attn_floats v_block(N_BLOCK*n_embd_v_pad);
        shared_attn_floats sums   ((n_rows + MR)*n_embd_v_pad);

        for (int64_t ib = 0; ib < n_block; ++ib) {
            const int64_t pos0 = ib*N_BLOCK;
            const int64_t n    = std::min(N_BLOCK, n_kv - pos0);

            bool packed = false;

            for (int64_t ir = 0; ir < n_rows; ir += MR) {
                const int64_t n_tile = std::min<int64_t>(MR, n_rows - ir);
                const int64_t n_pos  = task.n_attended(task.row0 + ir, task.row0 + ir + n_tile, pos0, n);

                if (n_pos == 0) {
                    continue;
                }

                if (!packed) {
                    pack_block(pos0, n, t);
                    simd::unpack(task.v->type, task.v_row(i_head_kv, pos0), task.v->nb[1], n, n_kv - pos0 - n, n_embd_head_v, v_block.data(), n_embd_v_pad);
                    packed = true;
                }

                score_tile(ir, n_tile, n_pos, t);

                for (int64_t r = 0; r < n_tile; ++r) {
                    load_mask(task.row0 + ir + r, pos0, n);
                    add_scores(ir + r, simd::pad_vec(n_pos), t.scores.data() + r*N_BLOCK, sums.data() + (ir + r)*n_embd_v_pad, n_embd_v_pad);
                }

                for (int64_t d = 0; d < n_embd_v_pad; d += N_PANEL) {
                    simd::template tile<true>(t.scores.data(), 1, N_BLOCK, v_block.data() + d, n_embd_v_pad, n_pos, sums.data() + ir*n_embd_v_pad + d, n_embd_v_pad);
                }
            }
        }

        for (int64_t ir = 0; ir < n_rows; ++ir) {
            const float max_old = max[ir];

            add_sink(ir);

            const float factor = max_old == -INFINITY ? 0.0f : expf(max_old - max[ir])/sum[ir]; // 0 of a row that attends to nothing

            float * kqv = task.kqv_row(task.row0 + ir);
            for (int64_t d = 0; d < n_embd_head_v; ++d) {
                kqv[d] = sums[ir*n_embd_v_pad + d]*factor;
            }
        }
    }

    // few rows per KV head: the heads of a position are next to each other in memory, so some positions are read for all heads
    // before the next ones, and the products of each with all rows are computed at once

    shared_attn_floats few_q_rows() const {
        shared_attn_floats res(n_rows*n_embd_pad);
        for (int64_t ir = 0; ir < n_rows; ++ir) {
            const float * q_row = task.q_row(task.row0 + ir);
            for (int64_t d = 0; d < n_embd_head; ++d) {
                res[ir*n_embd_pad + d] = q_row[d]*task.scale;
            }
        }
        return res;
    }

    SHARED_ATTN_INLINE void few_scores(int64_t pos0, int64_t n, const float * q_rows, float * k_group, float * scores, int64_t scores_row) const {
        const int64_t n_rows_head = task.n_per_head();

        for (int64_t j = 0; j < n; j += N_GROUP) {
            for (int64_t i_head_kv = task.head_kv(task.row0); i_head_kv <= task.head_kv(task.row1 - 1); ++i_head_kv) {
                const int64_t ir0 = std::max<int64_t>(0, (i_head_kv    )*n_rows_head - task.row0);
                const int64_t ir1 = std::min(n_rows,     (i_head_kv + 1)*n_rows_head - task.row0);

                const int64_t n_pos = std::min(N_GROUP, n - j);

                simd::unpack_group(task.k->type, task.k_row(i_head_kv, pos0 + j), task.k->nb[1], n_pos, n_kv - pos0 - j - n_pos, n_embd_head, k_group);
                simd::for_rows(ir1 - ir0, [&](auto n_r, int64_t r) SHARED_ATTN_LAMBDA {
                    simd::template dot<n_r>(q_rows + (ir0 + r)*n_embd_pad, k_group, n_embd_pad, scores + (ir0 + r)*scores_row + j, scores_row);
                });
            }
        }
    }

    SHARED_ATTN_INLINE void run_rows() {
        const auto q_rows = few_q_rows();

        shared_attn_floats k_group(N_GROUP*n_embd_pad);
        shared_attn_floats scores (n_rows*N_BLOCK);

        for (int64_t ib = 0; ib < n_block; ++ib) {
            const int64_t pos0 = ib*N_BLOCK;
            const int64_t n    = std::min(N_BLOCK, n_kv - pos0);

            if (task.n_attended(task.row0, task.row1, pos0, n) == 0) {
                continue;
            }

            few_scores(pos0, n, q_rows.data(), k_group.data(), scores.data(), N_BLOCK);

            for (int64_t ir = 0; ir < n_rows; ++ir) {
                add_block(ir, ib, n, scores.data() + ir*N_BLOCK);
            }
        }

        finish();
    }

    // a part of the positions, and the product with V as well
    SHARED_ATTN_INLINE void run_part() {
        const int64_t n_embd_head_v = task.v->ne[0];
        const int64_t n_embd_v_pad  = simd::pad_vec(n_embd_head_v);
        const int64_t n_rows_head   = task.n_per_head();

        const auto q_rows = few_q_rows();

        shared_attn_floats k_group(N_GROUP*n_embd_pad);
        shared_attn_floats v_group(N_GROUP*n_embd_v_pad);
        shared_attn_floats scores (n_rows*N_PART_MIN);
        shared_attn_floats sums   (n_rows*n_embd_v_pad);

        for (int64_t pos = task.pos0; pos < task.pos1; pos += N_PART_MIN) {
            const int64_t n = task.n_attended(task.row0, task.row1, pos, std::min(N_PART_MIN, task.pos1 - pos));

            if (n == 0) {
                continue;
            }

            few_scores(pos, n, q_rows.data(), k_group.data(), scores.data(), N_PART_MIN);

            for (int64_t ir = 0; ir < n_rows; ++ir) {
                load_mask(task.row0 + ir, pos, n);
                add_scores(ir, (n + N_GROUP - 1)/N_GROUP*N_GROUP, scores.data() + ir*N_PART_MIN, sums.data() + ir*n_embd_v_pad, n_embd_v_pad);
            }

            for (int64_t j = 0; j < n; j += N_GROUP) {
                for (int64_t i_head_kv = 0; i_head_kv < task.v->ne[2]; ++i_head_kv) {
                    const int64_t n_pos = std::min(N_GROUP, n - j);

                    simd::unpack_group(task.v->type, task.v_row(i_head_kv, pos + j), task.v->nb[1], n_pos, n_kv - pos - j - n_pos, n_embd_head_v, v_group.data());
                    simd::for_rows(n_rows_head, [&](auto n_r, int64_t r) SHARED_ATTN_LAMBDA {
                        const int64_t ir = i_head_kv*n_rows_head + r;
                        simd::template accumulate<n_r>(scores.data() + ir*N_PART_MIN + j, N_PART_MIN, v_group.data(), n_embd_v_pad, sums.data() + ir*n_embd_v_pad, n_embd_v_pad);
                    });
                }
            }
        }

        for (int64_t ir = 0; ir < n_rows; ++ir) {
            memcpy(task.part.sums(ir), sums.data() + ir*n_embd_v_pad, n_embd_head_v*sizeof(float));
            task.part.max(ir) = max[ir];
            task.part.sum(ir) = sum[ir];
        }
    }

    SHARED_ATTN_INLINE void run() {
        const bool few = task.n_per_head() < N_ROWS_TILE;

        if (task.v) {
            few ? run_part() : run_fused();
        } else {
            few ? run_rows() : run_tiles();
        }
    }
};

//
// the product with V
//

// rows of one KV head, or columns of V, which has those of all KV heads next to each other
struct shared_attn_pv_task : shared_attn_rows {
    const ggml_tensor * probs;

    int64_t i0;
    int64_t i1;

    const char * probs_row(int64_t row, int64_t pos) const { return at(probs, token(row), head(row), i_stream) + pos*probs->nb[0]; }

    // false where all probabilities are 0, which masked ones are exactly
    template <typename V>
    bool get_probs(int64_t row, int64_t pos, float * dst, int64_t n) const {
        const char * src = probs_row(row, pos);

        static const char zeros[N_BLOCK*sizeof(float)] = {};
        if (memcmp(src, zeros, n*ggml_type_size(probs->type)) == 0) {
            std::fill(dst, dst + n, 0.0f);
            return false;
        }

        to_f32<V>(probs->type, src, dst, n);
        return true;
    }
};

template <typename V, int MR, int NV>
struct shared_attn_pv : shared_attn_simd<V, MR, NV> {
    using simd = shared_attn_simd<V, MR, NV>;
    using vf   = typename V::vf;

    using simd::VW;
    using simd::N_PANEL;
    using simd::load;
    using simd::store;

    const shared_attn_pv_task & task;

    const int64_t n_embd_head = task.v->ne[0];
    const int64_t n_kv        = task.v->ne[1];

    SHARED_ATTN_INLINE explicit shared_attn_pv(const shared_attn_pv_task & task) : task(task) {}

    // many rows of one KV head
    SHARED_ATTN_INLINE void run_tiles() {
        const int64_t n_rows     = task.i1 - task.i0;
        const int64_t n_embd_pad = simd::pad(n_embd_head);
        const int64_t i_head_kv  = task.head_kv(task.i0);

        shared_attn_floats v_block(N_BLOCK*n_embd_pad);
        shared_attn_floats p_tile (MR*N_BLOCK);
        shared_attn_floats sums   ((n_rows + MR)*n_embd_pad);

        for (int64_t pos0 = 0; pos0 < n_kv; pos0 += N_BLOCK) {
            const int64_t n = std::min(N_BLOCK, n_kv - pos0);

            bool packed = false;

            for (int64_t ir = 0; ir < n_rows; ir += MR) {
                bool any = false;
                for (int64_t r = 0; r < std::min<int64_t>(MR, n_rows - ir); ++r) {
                    any |= task.template get_probs<V>(task.i0 + ir + r, pos0, p_tile.data() + r*N_BLOCK, n);
                }
                if (!any) {
                    continue;
                }

                if (!packed) {
                    simd::unpack(task.v->type, task.v_row(i_head_kv, pos0), task.v->nb[1], n, n_kv - pos0 - n, n_embd_head, v_block.data(), n_embd_pad);
                    packed = true;
                }

                for (int64_t d = 0; d < n_embd_pad; d += N_PANEL) {
                    simd::template tile<true>(p_tile.data(), 1, N_BLOCK, v_block.data() + d, n_embd_pad, n, sums.data() + ir*n_embd_pad + d, n_embd_pad);
                }
            }
        }

        for (int64_t ir = 0; ir < n_rows; ++ir) {
            memcpy(task.kqv_row(task.i0 + ir), sums.data() + ir*n_embd_pad, n_embd_head*sizeof(float));
        }
    }

    // few rows per KV head, and the columns of V from i0 to i1: each position is read once, for all heads
    SHARED_ATTN_INLINE void run_columns() {
        const int64_t n_columns  = task.i1 - task.i0;
        const int64_t head0      = task.i0/n_embd_head;
        const int64_t head1      = (task.i1 - 1)/n_embd_head + 1;
        const int64_t n_per_head = task.n_per_head();
        const int64_t n_rows     = (head1 - head0)*n_per_head;
        const int64_t n_embd_pad = simd::pad_vec(n_embd_head);

        shared_attn_floats v_group(N_GROUP*n_embd_pad);
        shared_attn_floats probs  (n_rows*N_BLOCK);
        shared_attn_floats sums   (n_rows*n_embd_pad);

        for (int64_t pos0 = 0; pos0 < n_kv; pos0 += N_BLOCK) {
            const int64_t n = std::min(N_BLOCK, n_kv - pos0);

            bool any = false;
            for (int64_t ir = 0; ir < n_rows; ++ir) {
                any |= task.template get_probs<V>(head0*n_per_head + ir, pos0, probs.data() + ir*N_BLOCK, n);
                std::fill(probs.data() + ir*N_BLOCK + n, probs.data() + (ir + 1)*N_BLOCK, 0.0f);
            }

            for (int64_t j = 0; j < n && any; j += N_GROUP) {
                for (int64_t i_head_kv = head0; i_head_kv < head1; ++i_head_kv) {
                    // the columns of this head, from the first one here
                    const int64_t c0 = std::max<int64_t>(0, (i_head_kv    )*n_embd_head - task.i0);
                    const int64_t c1 = std::min(n_columns,  (i_head_kv + 1)*n_embd_head - task.i0);

                    const char * v = task.v_row(i_head_kv, pos0 + j) + ggml_row_size(task.v->type, task.i0 + c0 - i_head_kv*n_embd_head);

                    const int64_t n_pos = std::min(N_GROUP, n - j);

                    simd::unpack_group(task.v->type, v, task.v->nb[1], n_pos, n_kv - pos0 - j - n_pos, c1 - c0, v_group.data());
                    simd::for_rows(n_per_head, [&](auto n_r, int64_t r) SHARED_ATTN_LAMBDA {
                        const int64_t ir = (i_head_kv - head0)*n_per_head + r;
                        simd::template accumulate<n_r>(probs.data() + ir*N_BLOCK + j, N_BLOCK, v_group.data(), simd::pad_vec(c1 - c0), sums.data() + ir*n_embd_pad, n_embd_pad);
                    });
                }
            }
        }

        for (int64_t i_head_kv = head0; i_head_kv < head1; ++i_head_kv) {
            const int64_t d0 = std::max<int64_t>(0,   task.i0 - i_head_kv*n_embd_head);
            const int64_t d1 = std::min(n_embd_head,  task.i1 - i_head_kv*n_embd_head);

            for (int64_t ir = (i_head_kv - head0)*n_per_head; ir < (i_head_kv - head0 + 1)*n_per_head; ++ir) {
                memcpy(task.kqv_row(head0*n_per_head + ir) + d0, sums.data() + ir*n_embd_pad, (d1 - d0)*sizeof(float));
            }
        }
    }

    SHARED_ATTN_INLINE void run() {
        if (task.n_per_head() < N_ROWS_TILE) {
            run_columns();
        } else {
            run_tiles();
        }
    }
};

#if defined(__x86_64__)
__attribute__((target("avx512f")))  static void run_avx512(const shared_attn_task    & task) { shared_attn_weights<vec_512, 12, 2>(task).run(); }
__attribute__((target("avx512f")))  static void run_avx512(const shared_attn_pv_task & task) { shared_attn_pv     <vec_512, 12, 2>(task).run(); }
__attribute__((target("avx2,fma,f16c"))) static void run_avx2  (const shared_attn_task    & task) { shared_attn_weights<vec_256,  6, 2>(task).run(); }
__attribute__((target("avx2,fma,f16c"))) static void run_avx2  (const shared_attn_pv_task & task) { shared_attn_pv     <vec_256,  6, 2>(task).run(); }
#endif
static                                     void run_any   (const shared_attn_task    & task) { shared_attn_weights<vec_128,  4, 2>(task).run(); }
static                                     void run_any   (const shared_attn_pv_task & task) { shared_attn_pv     <vec_128,  4, 2>(task).run(); }

#if defined(__x86_64__)
// what ggml-cpu was compiled for, which may be one of several modules: so our kernels use what all others use
// (__builtin_cpu_supports is always false where the compiler's library does not fill in what it reads)
static bool cpu_has(const char * name) {
    const ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
    const auto get_features = reg ? (ggml_backend_get_features_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features") : nullptr;

    for (const ggml_backend_feature * f = get_features ? get_features(reg) : nullptr; f && f->name; ++f) {
        if (strcmp(f->name, name) == 0) {
            return strcmp(f->value, "0") != 0;
        }
    }

    return false;
}
#endif

template <typename T>
static void run_simd(const T & task) {
#if defined(__x86_64__)
    if (cpu_has("AVX512")) {
        run_avx512(task);
        return;
    }
    if (cpu_has("AVX2") && cpu_has("FMA") && cpu_has("F16C")) {
        run_avx2(task);
        return;
    }
#endif
    run_any(task);
}

template <typename T>
static void run(const T & task) {
    try {
        run_simd(task);
    } catch (const std::bad_alloc &) {
        GGML_ABORT("shared attention: not enough memory for a block of the attention weights"); // no way out of a thread of ggml
    }
}

// as ggml's own operators keep them: ggml_custom leaves the end of op_params free
static float * op_params(ggml_tensor * t) {
    return (float *) t->op_params + GGML_MAX_OP_PARAMS/sizeof(float) - 4;
}

// calls f(i) for all i < n; threads take the parts one by one, as a core may be slower than another or have other work to do
//
// the number of the next part lies behind the parameters, where it stays from one run of a graph to the next: each thread
// takes one number too many, and the thread with the last of them begins again at 0
template <typename F>
static void shared_attn_for_parts(ggml_tensor * dst, int64_t n, int nth, F && f) {
    static_assert(sizeof(std::atomic<int32_t>) == sizeof(float), "one of the floats of op_params");

    auto & next = *(std::atomic<int32_t> *) (op_params(dst) + 3);

    int32_t i = next.fetch_add(1, std::memory_order_relaxed);
    while (i < n) {
        f(i);
        i = next.fetch_add(1, std::memory_order_relaxed);
    }

    if (i == n + nth - 1) {
        next.store(0, std::memory_order_relaxed); // the barrier behind the operator makes it seen
    }
}

// parts that keep all threads busy to the end; each of them converts K or V anew, so they have many rows or are as few as
// there are threads
static int64_t n_parts_of_tiles(const shared_attn_rows & rows, int64_t n_head_kv, int64_t n_stream, int nth) {
    int64_t n_per_head = 1;
    while (n_stream*n_head_kv*n_per_head < (rows.n_per_head()/n_per_head > N_ROWS_PART ? 4 : 1)*nth) {
        n_per_head++;
    }

    return n_head_kv*n_per_head;
}

static shared_attn_task shared_attn_task_of(ggml_tensor * dst) {
    shared_attn_task task = {};

    task.q        = dst->src[0];
    task.k        = dst->src[1];
    task.mask     = dst->src[2];
    task.scale    = op_params(dst)[0];
    task.max_bias = op_params(dst)[1];
    task.softcap  = op_params(dst)[2];
    task.n_tokens = task.q->ne[1];
    task.n_rep    = task.q->ne[2]/task.k->ne[2];

    return task;
}

static void shared_attn_compute(ggml_tensor * dst, const ggml_tensor * v, const ggml_tensor * sinks, int nth) {
    shared_attn_task task = shared_attn_task_of(dst);

    task.sinks = sinks;
    task.v     = v;
    task.probs = v ? nullptr : dst;
    task.kqv   = v ? dst : nullptr;

    const int64_t n_head_kv = task.k->ne[2];
    const int64_t n_stream  = task.k->ne[3];
    const int64_t n_rows    = task.n_per_head()*n_head_kv;
    const int64_t n_parts   = task.n_per_head() < N_ROWS_TILE ? nth : n_parts_of_tiles(task, n_head_kv, n_stream, nth);

    shared_attn_for_parts(dst, n_stream*n_parts, nth, [&](int64_t i) {
        task.i_stream = i/n_parts;
        task.row0     = n_rows*(i%n_parts    )/n_parts;
        task.row1     = n_rows*(i%n_parts + 1)/n_parts;

        if (task.row0 < task.row1) {
            run(task);
        }
    });
}

static void shared_attn_weights_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(ith);
    GGML_UNUSED(userdata);

    shared_attn_compute(dst, nullptr, dst->src[3], nth);
}

static void shared_attn_fused_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(ith);
    GGML_UNUSED(userdata);

    shared_attn_compute(dst, dst->src[3], dst->src[4], nth);
}

// few rows: the threads share the positions, and what those parts come to is added up by the next operator
static void shared_attn_parts_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(ith);
    GGML_UNUSED(userdata);

    shared_attn_task task = shared_attn_task_of(dst);

    task.v    = dst->src[3];
    task.row1 = task.n_per_head()*task.k->ne[2];

    const int64_t n_kv    = task.k->ne[1];
    const int64_t n_parts = dst->ne[2];
    const int64_t n_pos   = (n_kv + n_parts*N_PART_MIN - 1)/(n_parts*N_PART_MIN)*N_PART_MIN;

    shared_attn_for_parts(dst, n_parts*dst->ne[3], nth, [&](int64_t i) {
        task.i_stream = i/n_parts;
        task.pos0     = std::min(n_kv, (i%n_parts    )*n_pos);
        task.pos1     = std::min(n_kv, (i%n_parts + 1)*n_pos);
        task.part     = { (float *) shared_attn_rows::at(dst, 0, i%n_parts, task.i_stream), task.v->ne[0] };

        run(task);
    });
}

static void shared_attn_merge_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(userdata);

    const ggml_tensor * parts = dst->src[0];
    const ggml_tensor * sinks = dst->src[1];

    shared_attn_rows rows = {};

    rows.kqv      = dst;
    rows.n_tokens = dst->ne[1];
    rows.n_rep    = ((const int32_t *) op_params(dst))[0];

    const int64_t n_embd = dst->ne[0];
    const int64_t n_rows = parts->ne[1];

    for (int64_t i = ith; i < n_rows*parts->ne[3]; i += nth) {
        const int64_t row = i%n_rows;

        rows.i_stream = i/n_rows;

        const auto part = [&](int64_t i_part) {
            return shared_attn_part { (float *) shared_attn_rows::at(parts, 0, i_part, rows.i_stream), n_embd };
        };

        const float sink = sinks ? ((const float *) sinks->data)[rows.head(row)] : -INFINITY;

        float max = sink;
        for (int64_t i_part = 0; i_part < parts->ne[2]; ++i_part) {
            max = std::max(max, part(i_part).max(row));
        }

        float   sum = sinks ? expf(sink - max) : 0.0f;
        float * kqv = rows.kqv_row(row);

        std::fill(kqv, kqv + n_embd, 0.0f);

        for (int64_t i_part = 0; i_part < parts->ne[2]; ++i_part) {
            if (part(i_part).max(row) == -INFINITY) {
                continue;
            }

            const float   factor = expf(part(i_part).max(row) - max);
            const float * sums   = part(i_part).sums(row);

            sum += factor*part(i_part).sum(row);
            for (int64_t d = 0; d < n_embd; ++d) {
                kqv[d] += factor*sums[d];
            }
        }

        for (int64_t d = 0; d < n_embd && sum != 0.0f; ++d) {
            kqv[d] /= sum;
        }
    }
}

static void shared_attn_pv_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(ith);
    GGML_UNUSED(userdata);

    shared_attn_pv_task task;

    task.probs    = dst->src[0];
    task.v        = dst->src[1];
    task.kqv      = dst;
    task.n_tokens = task.probs->ne[1];
    task.n_rep    = task.probs->ne[2]/task.v->ne[2];

    const int64_t n_embd_head = task.v->ne[0];
    const int64_t n_head_kv   = task.v->ne[2];
    const int64_t n_stream    = task.v->ne[3];
    const bool    tiles       = task.n_per_head() >= N_ROWS_TILE;

    // a part has whole blocks of quantized columns
    const int64_t n_unit  = tiles ? 1 : n_embd_head%32 == 0 ? 32 : n_embd_head;
    const int64_t n_units = n_head_kv*(tiles ? task.n_per_head() : n_embd_head)/n_unit;
    const int64_t n_parts = tiles ? n_parts_of_tiles(task, n_head_kv, n_stream, nth) : nth;

    shared_attn_for_parts(dst, n_stream*n_parts, nth, [&](int64_t i) {
        task.i_stream = i/n_parts;
        task.i0       = n_units*(i%n_parts    )/n_parts*n_unit;
        task.i1       = n_units*(i%n_parts + 1)/n_parts*n_unit;

        if (task.i0 < task.i1) {
            run(task);
        }
    });
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
            shared_attn_weights_compute, GGML_N_TASKS_MAX, nullptr);

    op_params(probs)[0] = scale;
    op_params(probs)[1] = max_bias;
    op_params(probs)[2] = softcap;

    return probs;
#else
    GGML_ABORT("not without llama_shared_attn_kernel_available()");
#endif
}

ggml_tensor * llama_shared_attn_kernel_pv(ggml_context * ctx, ggml_tensor * probs, ggml_tensor * v) {
#ifdef SHARED_ATTN_SIMD
    ggml_tensor * args[] = { probs, v };

    return ggml_custom_4d(ctx, GGML_TYPE_F32, v->ne[0], probs->ne[1], probs->ne[2], probs->ne[3], args, 2,
            shared_attn_pv_compute, GGML_N_TASKS_MAX, nullptr);
#else
    GGML_ABORT("not without llama_shared_attn_kernel_available()");
#endif
}

bool llama_shared_attn_kernel_fuses(const ggml_tensor * probs) {
    // a view is of the weights that another layer left
    return probs->op == GGML_OP_CUSTOM;
}

ggml_tensor * llama_shared_attn_kernel_fused(ggml_context * ctx, ggml_tensor * probs, ggml_tensor * v) {
#ifdef SHARED_ATTN_SIMD
    ggml_tensor * sinks  = probs->src[3];
    ggml_tensor * args[] = { probs->src[0], probs->src[1], probs->src[2], v, sinks };

    const int64_t n_embd = v->ne[0], n_tokens = probs->ne[1], n_head = probs->ne[2], n_stream = probs->ne[3];
    const int64_t n_rep  = n_head/v->ne[2];

    if (n_tokens*n_rep >= N_ROWS_TILE) {
        ggml_tensor * kqv = ggml_custom_4d(ctx, GGML_TYPE_F32, n_embd, n_tokens, n_head, n_stream, args, sinks ? 5 : 4,
                shared_attn_fused_compute, GGML_N_TASKS_MAX, nullptr);

        std::copy(op_params(probs), op_params(probs) + 3, op_params(kqv));

        return kqv;
    }

    const int64_t n_parts = std::min(N_PARTS_MAX, (v->ne[1] + N_PART_MIN - 1)/N_PART_MIN);

    ggml_tensor * parts = ggml_custom_4d(ctx, GGML_TYPE_F32, n_embd + 2, n_tokens*n_head, n_parts, n_stream, args, 4,
            shared_attn_parts_compute, GGML_N_TASKS_MAX, nullptr);

    std::copy(op_params(probs), op_params(probs) + 3, op_params(parts));

    ggml_tensor * args_merge[] = { parts, sinks };

    ggml_tensor * kqv = ggml_custom_4d(ctx, GGML_TYPE_F32, n_embd, n_tokens, n_head, n_stream, args_merge, sinks ? 2 : 1,
            shared_attn_merge_compute, GGML_N_TASKS_MAX, nullptr);

    ((int32_t *) op_params(kqv))[0] = n_rep;

    return kqv;
#else
    GGML_ABORT("not without llama_shared_attn_kernel_available()");
#endif
}
