import pytest
import torch
from leaving_out import LeavingOut

from udmlss import ClusterPseudoLabeler


@pytest.mark.parametrize("share", [0, 0.2, 0.5])
def test_of_each_cluster_the_share_farthest_from_its_centroid_is_left_out(share):
    draws = torch.Generator().manual_seed(0)
    embeddings = torch.randn(60, 4, generator=draws) + 9 * torch.eye(4)[torch.arange(60) % 4]
    whole = ClusterPseudoLabeler(4).label(embeddings)
    pseudo = LeavingOut(ClusterPseudoLabeler(4), share).label(embeddings)
    assert torch.equal(pseudo.sizes, pseudo.labels[pseudo.labels >= 0].bincount())
    for cluster, centroid in enumerate(whole.centers):
        members = (whole.labels == cluster).nonzero().flatten().tolist()
        by_distance = sorted(members, key=lambda member: float((embeddings[member] - centroid).norm()))
        kept = by_distance[: len(members) - int(share * len(members))]
        assert (pseudo.labels == cluster).nonzero().flatten().tolist() == sorted(kept)
