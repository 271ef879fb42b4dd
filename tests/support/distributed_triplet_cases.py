"""Check of the triplet loss that runs on each of K ranks; `distributed_ranks` starts it."""

import torch
from support.distributed_cases import COUNTS, check_sum_over_ranks, local_slice

from atk.nn import TripletLoss


def triplet_losses_add_up(rank, size):
    for counts in COUNTS[size]:
        vectors = torch.randn(2, sum(counts), 8, dtype=torch.float64)
        captions = torch.arange(sum(counts)) % 3  # of equal captions, too
        part = local_slice(counts, rank)

        def whole(audio, text, scale, captions=captions):
            return scale * TripletLoss(negatives="semi-hard")(audio, text, captions)

        def share(audio, text, scale, captions=captions[part]):
            return scale * TripletLoss(negatives="semi-hard", gather="all")(audio, text, captions)

        check_sum_over_ranks(whole, share, vectors, counts, rank)


CASES = {"triplet_losses_add_up": triplet_losses_add_up}
