"""The op in a plain script: learn to match captions with clips from frames and tokens.

    python examples/op_in_a_script.py

Needs only torch and atk. The embeddings are synthetic: every frame of a clip is one of its caption's tokens, multiplied
by a fixed random matrix, plus noise. A linear layer learns to invert the matrix.
"""

import argparse

import torch
from torch import Tensor, nn

import atk


def draw_pairs(count: int, mixing: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames `[N, L_a, D]`, tokens `[N, L_t, D]`, and their boolean masks, True = valid."""
    longest_clip, longest_caption = 50, 8
    width = len(mixing)
    tokens = torch.randn(count, longest_caption, width, generator=generator)
    caption_lengths = torch.randint(3, longest_caption + 1, (count, 1), generator=generator)
    clip_lengths = torch.randint(20, longest_clip + 1, (count, 1), generator=generator)
    token_of_frame = (torch.rand(count, longest_clip, generator=generator) * caption_lengths).long()
    frames = tokens.gather(1, token_of_frame[..., None].expand(-1, -1, width)) @ mixing
    frames = frames + 0.5 * torch.randn(frames.shape, generator=generator)
    return frames, tokens, torch.arange(longest_clip) < clip_lengths, torch.arange(longest_caption) < caption_lengths


def recall_at_1(similarity: Tensor) -> float:
    """Percentage of captions (columns) for which their own clip has the highest score."""
    return 100 * (similarity.argmax(0) == torch.arange(len(similarity))).float().mean().item()


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Train; returns the losses, and R@1 of held-out pairs before and after training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32, help="channels D of frames and tokens")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(args.width, args.width, generator=generator) / args.width**0.5
    frames, tokens, frame_mask, token_mask = draw_pairs(100, mixing, generator)  # held out
    project = nn.Linear(args.width, args.width)
    logit_scale = nn.Parameter(torch.tensor(10.0))

    def held_out_recall() -> float:
        with torch.no_grad():  # [N_a, N_t]: mean over frames of the best token's cosine
            sim = atk.max_mean_similarity(project(frames), tokens, frame_mask, token_mask, normalize=True)
        return recall_at_1(sim)

    optimizer = torch.optim.Adam([*project.parameters(), logit_scale], lr=0.01)
    losses: list[float] = []
    recalls = [held_out_recall()]
    for _ in range(args.steps):
        batch_frames, batch_tokens, *masks = draw_pairs(args.batch_size, mixing, generator)
        loss = atk.aligned_info_nce(project(batch_frames), batch_tokens, logit_scale, *masks, normalize=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    recalls.append(held_out_recall())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, held-out R@1 {recalls[0]:.0f} % -> {recalls[1]:.0f} %")
    return {"losses": losses, "recalls": recalls}


if __name__ == "__main__":
    main()
