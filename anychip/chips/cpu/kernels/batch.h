// A pass of the whole model over new tokens of many sequences: what it is given, filled by batch.py field by field in
// this order (each field is 8 bytes), and how its threads share the work.
//
// No number of a token depends on which other tokens are in the pass, on how many threads there are, or on how a prompt
// was cut into chunks: each is one sum in one order, whoever makes it. That is what makes serving repeatable.
#pragma once
#include <atomic>
#include <omp.h>
#include <vector>

#include "block.h"
#include "simd.h"

struct BatchModel {
    int64_t layers, window, half;
    const BlockWeights* const* blocks;  // one more where there is an MTP block
    const float *embed, *head, *norm, *hc_fn, *hc_base, *hc_scale;
    const float *e_proj, *h_proj, *enorm, *hnorm, *mtp_norm, *mtp_fn, *mtp_base, *mtp_scale;  // null without MTP block
    const float *near_cos, *near_sin, *far_cos, *far_sin;  // [positions][half]: layers of ratio 0, and all others
};

// Where one layer's state lies: offsets in floats into a slot (rings of the last rows, by position), and into the pool of
// blocks of 128 tokens (compressed entries, all blocks' side by side); -1 where the layer has none.
struct LayerState {
    int64_t window, value, gate, index_value, index_gate;
    int64_t entry, index_entry;
    uint8_t* rough;  // copies of the indexer's keys of all blocks (index_rough.h), or null
};

struct BatchState {
    float *slots, *blocks;
    int64_t slot_step, format;  // format 1: what is stored is rounded as FP8 (and FP4 for the indexer)
    const LayerState* layers;
};

// New tokens lie one sequence after the other: sequence s has lengths[s] of them from position starts[s].
struct Batch {
    int64_t tokens, sequences, wanted, vocab, table_step;  // logits of the first `vocab` ids
    const int64_t *ids, *starts, *lengths, *slots;
    const int32_t* tables;       // [sequences][table_step]: blocks of the sequence, in order
    const int64_t* rows;         // [wanted]: tokens whose logits are wanted
    float *streams, *logits;     // streams [tokens][n][d] in (MTP) and out; logits [wanted][vocab]
};

namespace {

// A window of `ratio` tokens that this pass closes.
struct Closing {
    int64_t sequence, entry;
};

// What the master works out once a pass.
struct Order {
    std::vector<int64_t> sequence, position, first;  // of each token; first token of each sequence
    std::vector<Closing> closing[2];                 // CSA, HCA

    explicit Order(const Batch& b) {
        for (int64_t s = 0; s < b.sequences; s++) {
            first.push_back(sequence.size());
            for (int64_t i = 0; i < b.lengths[s]; i++) sequence.push_back(s), position.push_back(b.starts[s] + i);
            for (int k = 0; k < 2; k++) {
                const int64_t ratio = k ? 128 : 4;
                for (int64_t e = b.starts[s] / ratio; e < (b.starts[s] + b.lengths[s]) / ratio; e++) closing[k].push_back({s, e});
            }
        }
    }
};

// The threads of one parallel region; sync() waits for all, counters hand out tasks one by one.
struct Crew {
    int64_t me, count;
    std::atomic<int64_t>* counters;  // [PHASES] a layer, zero at the start of the pass
    int64_t from(int64_t work) const { return work * me / count; }
    int64_t to(int64_t work) const { return work * (me + 1) / count; }
    int64_t take(int64_t counter) const { return counters[counter].fetch_add(1, std::memory_order_relaxed); }
    void sync() const {
#pragma omp barrier
    }
};

}  // namespace
