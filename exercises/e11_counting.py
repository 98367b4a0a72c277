"""Exercise 11: how many parameters? "MiCA trains half of what LoRA does" is said of square weights; count by hand.

Goal: the numbers of trained parameters in real models, from their shapes, and where "half" stops being true.

    LoRA trains A and B, MiCA only A:  A is (rank, in), B is (out, rank)         arXiv 2106.09685, 4.1; arXiv 2604.01694

Shapes, of each of the model's layers (out x in):
    Llama-2-7B, 32 layers:   q, k, v, o 4096 x 4096;   gate, up 11008 x 4096;   down 4096 x 11008
    Qwen2.5-7B, 28 layers:   q, o 3584 x 3584;   k, v 512 x 3584;   gate, up 18944 x 3584;   down 3584 x 18944

Measure before you look on (with a pencil): write the four numbers below before any code. Of which of Qwen2.5-7B's
seven linears does MiCA train the largest part of what LoRA does, of which the smallest?
python -m exercises 11 --measure
"""

from exercises import NotWritten

# All four adapt q_proj and v_proj of every layer. Whole numbers, as 1_234_567.
LLAMA_LORA_RANK_128 = ...  # Llama-2-7B
LLAMA_MICA_RANK_16 = ...
QWEN_LORA_RANK_32 = ...  # Qwen2.5-7B
QWEN_MICA_RANK_32 = ...

LARGEST_PART = ...  # of Qwen2.5-7B's linears, at one rank: "q", "k", "v", "o", "gate", "up" or "down" (one of them)
SMALLEST_PART = ...


def mica_part(out_features, in_features):
    """What MiCA trains of a weight, as a part of what LoRA trains at the same rank: 0.5 for a square one."""
    raise NotWritten


def measure():
    shapes = {"q": (3584, 3584), "k": (512, 3584), "gate": (18944, 3584), "down": (3584, 18944)}
    for name, shape in shapes.items():
        print(f"Qwen2.5-7B {name:5} {shape[0]:6} x {shape[1]:5}: MiCA trains {mica_part(*shape):.3f} of what LoRA does")
