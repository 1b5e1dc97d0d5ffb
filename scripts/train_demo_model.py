#!/usr/bin/env python3
"""Train the demo models on the sources of the Python standard library.

    python scripts/train_demo_model.py --work build/demo --out tests/models/stdlib-5m
    python scripts/train_demo_model.py --work build/demo --out tests/models/stdlib-5m --resume
    python scripts/train_demo_model.py --shape mha-3m --work build/demo --out tests/models/stdlib-3m-mha
    python scripts/train_demo_model.py --out build/demo/5m --keep 1,3,10,30    # checkpoints on the way, for analyze
    python scripts/train_demo_model.py --out tests/models/stdlib-5m --evaluate
    python scripts/train_demo_model.py --training-text train.txt

It reads only the standard library of the running interpreter. One epoch of the first model takes 60 to 90 minutes on
two cores, the half epoch of the second model one hour on one core. A checkpoint every few minutes allows --resume.
Models with the same --work have the same tokenizer. torch, transformers and sentencepiece are needed.
"""

import argparse
import hashlib
import json
import lzma
import math
import shutil
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 512
VOCAB = 2048
BATCH = 8  # sequences per step: at this size many small steps beat few large ones
LR_MATRIX, LR_OTHER, WEIGHT_DECAY = 3e-3, 4e-3, 0.1
WARMUP = 60
SAVE_EVERY = 200
HELDOUT_ONE_IN = 50
SAMPLE_BYTES = 200_000
SEED = 1
BOS, EOS = 1, 2


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    epochs: float = 1.0

    def config(self) -> LlamaConfig:
        fields = asdict(self)
        del fields["epochs"]
        return LlamaConfig(
            **fields,
            vocab_size=VOCAB,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            dtype="bfloat16",
        )


SHAPES = {
    "gqa-5m": Shape(192, 512, 12, 6, 3),
    "mha-3m": Shape(128, 352, 16, 4, 4, epochs=0.5),
}


# ---------------------------------------------------------------- corpus


def stdlib_files() -> tuple[list[Path], list[Path]]:
    """Return the training and held-out files. The path of a file decides, so the split is the same on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train: list[Path] = []
    heldout: list[Path] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or "__pycache__" in name:
            continue
        digest = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        (heldout if digest % HELDOUT_ONE_IN == 0 else train).append(path)
    return train, heldout


def read_texts(paths: list[Path]) -> list[str]:
    """Return the texts of the files that are UTF-8; a few test inputs of the standard library are not."""
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return [text for text in texts if text.strip()]


def heldout_sample(texts: list[str]) -> str:
    """Return the first whole held-out files that fit in SAMPLE_BYTES, without very long files."""
    sample = ""
    for text in texts:
        if len(text) < SAMPLE_BYTES // 5 and len((sample + text).encode()) <= SAMPLE_BYTES:
            sample += text
    return sample


def train_tokenizer(texts: list[str], prefix: Path) -> None:
    """Train a SentencePiece BPE tokenizer that keeps code unchanged: no normalisation, runs of spaces, bytes."""
    lines = (line for text in texts for line in text.split("\n") if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        input_sentence_size=400_000,
        shuffle_input_sentence=True,
        max_sentence_length=4096,
        minloglevel=2,
    )


def tokenize(texts: list[str], tokenizer: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """Return one uint16 stream: BOS, the tokens of a file, EOS, BOS, the next file ..."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(texts))
    parts = [[BOS, *tokenizer.encode(texts[i]), EOS] for i in order]
    return np.concatenate([np.array(part, dtype=np.uint16) for part in parts])


# ---------------------------------------------------------------- training


def build_model(shape: Shape) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(shape.config()).float()
    # Residual projections start smaller, as in GPT-2, so that depth does not inflate the residual stream.
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data.mul_(1 / math.sqrt(2 * shape.num_hidden_layers))
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices in the layers, and AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    return [
        torch.optim.Muon(matrices, lr=LR_MATRIX, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LR_OTHER, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def lr_scale(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min(1.0, (step + 1) / WARMUP) * (1 - step / steps)


Keep = Callable[[int, LlamaForCausalLM], None]  # told the percentage that is done


def train(
    shape: Shape, stream: np.ndarray, checkpoint: Path, resume: bool, percentages: Sequence[int], keep: Keep
) -> LlamaForCausalLM:
    """Return the trained model. `keep` is called with the model at each of these percentages of the steps."""
    model = build_model(shape)
    opts = optimizers(model)
    base_lr = [group["lr"] for opt in opts for group in opt.param_groups]
    windows = len(stream) // CONTEXT
    order = np.random.default_rng(SEED).permutation(windows)
    steps, first = int(windows * shape.epochs) // BATCH, 0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        first = state["step"]
    kept = {max(1, steps * percentage // 100): percentage for percentage in percentages}
    print(f"{len(stream):,} tokens, {steps} steps, from step {first}", flush=True)

    forward = torch.compile(model.model)
    started, seen = time.monotonic(), 0
    for step in range(first, steps):
        scale = lr_scale(step, steps)
        groups = [group for opt in opts for group in opt.param_groups]
        for group, lr in zip(groups, base_lr, strict=True):
            group["lr"] = lr * scale
        rows = [stream[w * CONTEXT : (w + 1) * CONTEXT] for w in order[step * BATCH : (step + 1) * BATCH]]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = forward(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden)
        loss = cross_entropy(logits.reshape(-1, VOCAB).float(), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        seen += tokens.numel()
        if step % 20 == 0:
            rate = seen / (time.monotonic() - started)
            left = (steps - step) * BATCH * CONTEXT / rate / 60
            print(f"step {step}/{steps} loss {loss.item():.3f} {rate:,.0f} tokens/s, {left:.0f} min left", flush=True)
        if (step + 1) % SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "opts": [opt.state_dict() for opt in opts], "step": step + 1}
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
        if step + 1 in kept:
            copy = build_model(shape)
            copy.load_state_dict(model.state_dict())
            keep(kept[step + 1], copy)
    return model


# ---------------------------------------------------------------- result


def save(model: LlamaForCausalLM, tokenizer_model: Path, sample: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(out)
    shutil.copy(tokenizer_model, out / "tokenizer.model")
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "model_max_length": CONTEXT,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (out / "heldout.txt").write_text(sample, encoding="utf-8")
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    if licence.exists():
        shutil.copy(licence, out / "LICENSE")


@torch.no_grad()
def bits_per_byte(model_dir: Path) -> float:
    """Return the bits per byte of heldout.txt.

    Tokens are predicted from 256 to 511 tokens before them, except the first.
    """
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model_dir / "tokenizer.model"))
    text = (model_dir / "heldout.txt").read_text(encoding="utf-8")
    tokens = torch.tensor([BOS, *tokenizer.encode(text)])
    stride, nats, done = CONTEXT // 2, 0.0, 1
    for begin in range(0, len(tokens), stride):
        window = tokens[begin : begin + CONTEXT]
        end = begin + len(window)
        if end <= done:
            break
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        nll = cross_entropy(logits, window[1:], reduction="none")
        nats += nll[done - begin - 1 :].sum().item()
        done = end
    return nats / math.log(2) / len(text.encode())


def evaluate(model_dir: Path) -> None:
    text = (model_dir / "heldout.txt").read_bytes()
    packed = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    print(f"heldout.txt: {len(text):,} bytes")
    print(f"model:  {bits_per_byte(model_dir):.3f} bits per byte")
    print(f"xz -9e: {8 * packed / len(text):.3f} bits per byte")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="checkpoints and the token stream")
    parser.add_argument("--shape", choices=SHAPES, default="gqa-5m")
    parser.add_argument("--training-text", type=Path, metavar="FILE", help="only write the text it trains on to FILE")
    parser.add_argument("--out", type=Path, help="the Hugging Face directory to write")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    parser.add_argument(
        "--keep", metavar="PERCENTAGES", default="", help="also write OUT-P for each: '1,3,10,30' of the steps"
    )
    parser.add_argument("--evaluate", action="store_true", help="only print the held-out figures of --out")
    args = parser.parse_args()
    if args.training_text:
        args.training_text.write_text("".join(read_texts(stdlib_files()[0])), encoding="utf-8")
        return None
    if args.out is None:
        parser.error("--out is needed")
    if args.evaluate:
        return evaluate(args.out)

    args.work.mkdir(parents=True, exist_ok=True)
    train_paths, heldout_paths = stdlib_files()
    texts = read_texts(train_paths)
    prefix, stream_file = args.work / "tokenizer", args.work / "stream.npy"
    if not stream_file.exists():
        train_tokenizer(texts, prefix)
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
        np.save(stream_file, tokenize(texts, tokenizer))
    checkpoint = args.work / f"{args.shape}.pt"
    sample = heldout_sample(read_texts(heldout_paths))

    def write(model: LlamaForCausalLM, out: Path) -> None:
        save(model, prefix.with_suffix(".model"), sample, out)

    def keep(percentage: int, model: LlamaForCausalLM) -> None:
        write(model, args.out.with_name(f"{args.out.name}-{percentage}"))

    percentages = [int(percentage) for percentage in args.keep.split(",") if percentage]
    model = train(SHAPES[args.shape], np.load(stream_file), checkpoint, args.resume, percentages, keep)
    write(model, args.out)
    evaluate(args.out)


if __name__ == "__main__":
    main()
