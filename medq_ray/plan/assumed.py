"""What a plan assumes: everything that neither settings nor sizes tell. Ours, unless a source is named; what a run of
yours takes belongs here instead."""

from medq_ray.config import Section


class Assumed(Section):
    image_side: int = 448
    """Pixels of an image's side; 256 tokens in both of the paper's models (larger ones are up to 13 times as many)."""
    question_tokens: int = 80
    """Of a question with its options and the chat's marks, without the image."""
    letter_tokens: int = 2
    """Of an answer that is a letter, with the mark that ends it."""
    description_tokens: int = 150
    """Of a description."""
    training_utilisation: float = 0.40
    """Share of the peak at which a training step computes, what is computed twice included."""
    prefill_utilisation: float = 0.40
    """Share of the peak at which an engine reads prompts and images."""
    bandwidth_utilisation: float = 0.60
    """Share of the memory bandwidth at which an engine reads weights and cache for the next token of all sequences."""
    engine_share: float = 0.90
    """Share of a GPU's memory that vLLM takes (its default)."""
    engine_bytes: int = 4 << 30
    """Of an engine besides weights and cache: activations of the longest prompt, graphs, CUDA."""
    framework_bytes: int = 3 << 30
    """Of a training worker besides tensors: CUDA context, NCCL, cuBLAS."""
    fragmentation: float = 0.08
    """Share of its tensors' memory that torch's allocator holds in vain."""
    worker_bytes: int = 3 << 30
    """Host memory of a Python process with torch and transformers, or of an engine, besides weights."""
    engine_start: float = 180.0
    """Seconds until an engine answers."""
    training_start: float = 300.0
    """Seconds of a fine-tuning before its first step and after its last: workers, weights, export."""
    oracle_seconds: float = 4.0
    """Until an oracle or judge elsewhere has answered one of `engine.concurrency` requests in flight."""
    pool_images: int = 1_000_000
    """|U| (Sec. 2.1), where `pool.path` or `world.path` name images that are not counted here."""
    embedding_bytes: int = 4 * 512
    """Of an image's embedding (BiomedCLIP: 512 numbers)."""
