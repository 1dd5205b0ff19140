"""K-means on a line against the textbook algorithm, centroid gradients, fixed clusters."""

import itertools

import pytest
import torch

from common.quantizers.kmeans import KMeansQuantizer, compression_rate, kmeans, shared_weights, start_centroids

W = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]
CODES = [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]


def example():
    return torch.tensor(W, dtype=torch.double)


def normal(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def squared_error(x, centroids):
    return (x.flatten()[:, None] - centroids).square().min(1).values.sum().item()


def test_golden_kmeans_2bit():
    weight = example()
    start = start_centroids(weight.flatten().sort().values, 4)
    assert start.tolist() == pytest.approx([-1.08, -0.01333333333333342, 1.0533333333333335, 2.12], abs=1e-9)
    centroids, iterations = kmeans(weight, 4)
    assert centroids.tolist() == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=1e-9) and iterations == 1
    assert squared_error(weight, centroids) == pytest.approx(0.0932, abs=1e-9)
    assert squared_error(weight, centroids) ** 0.5 == pytest.approx(0.30528675044947495, abs=1e-9)

    quantizer = KMeansQuantizer(2).double()
    quantizer.calibrate(weight)
    encoding = quantizer.encode(weight)
    assert encoding.codes.tolist() == CODES and encoding.codes.flatten().bincount().tolist() == [4, 5, 3, 4]
    assert encoding.levels.tolist() == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=1e-6)
    assert (quantizer(weight) - weight).square().sum().item() == pytest.approx(0.0932, abs=1e-9)


def by_the_book(x, centroids, iterations):
    """Lloyd's algorithm with plain loops, ties to the upper centroid; no cluster may become empty."""
    centroids = list(centroids)
    for _ in range(iterations):
        members = [[] for _ in centroids]
        for v in x:
            distances = [abs(v - c) for c in centroids]
            members[len(centroids) - 1 - distances[::-1].index(min(distances))].append(v)
        centroids = [sum(m) / len(m) for m in members]
    return centroids


@pytest.mark.parametrize("start", ["linear", "density", "random"])
@pytest.mark.parametrize("clusters", [1, 2, 3, 5, 16])
def test_iterations_by_the_book(start, clusters):
    x = torch.rand(200, generator=torch.Generator().manual_seed(clusters), dtype=torch.double)
    first = start_centroids(x.sort().values, clusters, start, key=3)
    for iterations in (1, 2, 5):
        expected = by_the_book(x.tolist(), first.tolist(), iterations)
        assert kmeans(x, clusters, start, iterations, key=3)[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_error_never_grows_and_ends_at_a_fixed_point(start):
    x = normal(3000) ** 3  # long tails: a linear start has empty clusters
    errors = [squared_error(x, kmeans(x, 16, start, n)[0]) for n in range(30)]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(errors))
    centroids, iterations = kmeans(x, 16, start, 500)
    assert iterations < 500
    assert by_the_book(x.tolist(), centroids.tolist(), 1) == pytest.approx(centroids.tolist(), abs=1e-12)


def test_a_linear_start_spans_the_range():
    assert start_centroids(torch.tensor([1.0, 2.0, 2.5, 4.0]), 4).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_density_start_has_equally_many_values_per_centroid():
    ascending = torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0, 200.0, 300.0, 1000.0])
    assert start_centroids(ascending, 4, "density").tolist() == [1.0, 3.0, 200.0, 1000.0]


def test_a_random_start_draws_different_values_by_its_key():
    ascending = normal(50).sort().values
    drawn = start_centroids(ascending, 8, "random", key=1)
    assert drawn.unique().numel() == 8 and torch.isin(drawn, ascending).all() and (drawn.diff() > 0).all()
    assert torch.equal(drawn, start_centroids(ascending, 8, "random", key=1))
    assert not torch.equal(drawn, start_centroids(ascending, 8, "random", key=2))


def test_an_empty_cluster_moves_to_the_farthest_value():
    # Start 0, 5, 10: nothing is nearest to 5; of the ends of the other clusters 2 is farthest (from 0).
    x = torch.tensor([0.0, 0.5, 2.0, 9.0, 10.0])
    centroids, _ = kmeans(x, 3, iterations=1)
    assert centroids.tolist() == pytest.approx([2.5 / 3, 2.0, 9.5])
    assert kmeans(x, 3)[0].tolist() == [0.25, 2.0, 9.5]


def test_several_empty_clusters_take_different_values():
    x = torch.tensor([0.0] * 5 + [0.1, 0.2, 0.3] + [100.0] * 5)
    assert kmeans(x, 5)[0].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 100.0])


def test_more_clusters_than_different_values_reach_no_error():
    x = torch.tensor([1.0, 1.0, 2.0, 5.0])
    centroids, iterations = kmeans(x, 8)
    assert squared_error(x, centroids) == 0 and iterations < 50 and centroids.isfinite().all()


def test_equal_values():
    assert kmeans(torch.full((10,), 0.3), 4)[0].tolist() == pytest.approx([0.3] * 4)


def test_scale_and_shift():
    x = normal(500)
    torch.testing.assert_close(kmeans(3 * x + 2, 8)[0], 3 * kmeans(x, 8)[0] + 2)


def test_unknown_start():
    with pytest.raises(ValueError, match=r"start must be one of .*, got 'uniform'"):
        kmeans(torch.ones(3), 2, "uniform")


def test_unknown_start_of_the_module():
    with pytest.raises(ValueError, match=r"start must be one of .*, got 'uniform'"):
        KMeansQuantizer(2, start="uniform")


def test_random_start_with_too_few_values():
    with pytest.raises(ValueError, match="clusters must not exceed the number of values, 3, got 4"):
        kmeans(torch.arange(3.0), 4, "random")


def test_gradient_of_a_centroid_is_the_sum_over_its_members():
    centroids = torch.tensor([-1.0, 0.0, 1.5, 2.0], requires_grad=True)
    upstream = torch.arange(16.0).reshape(4, 4)
    shared_weights(centroids, torch.tensor(CODES)).backward(upstream)
    # members in row-major order: 0: 1, 6, 8, 11; 1: 3, 4, 5, 10, 13; 2: 2, 14, 15; 3: 0, 7, 9, 12
    assert centroids.grad.tolist() == [26.0, 35.0, 31.0, 28.0]


def test_gradient_sums_of_many_members_are_exact_in_float32():
    centroids = torch.zeros(2, requires_grad=True)
    shared_weights(centroids, torch.zeros(3_000_000, dtype=torch.int32)).backward(torch.full((3_000_000,), 0.1))
    assert centroids.grad.tolist() == pytest.approx([300_000.0, 0.0], rel=1e-6)


def test_clusters_stay_while_their_centroids_train():
    weight = example().float()
    quantizer = KMeansQuantizer(2, shape=(4, 4))
    quantizer.calibrate(weight)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        ((quantizer(weight) - 5) ** 2).sum().backward()
        optimizer.step()
    y = quantizer(weight)
    assert y.unique().numel() == 4
    # c - 5 shrinks by 1 - 0.02 n a step, n members
    expected = [5 - (5 - c) * (1 - 0.02 * n) ** 5 for c, n in ((-1.0, 4), (0.0, 5), (1.5, 3), (2.0, 4))]
    assert quantizer.centroids.tolist() == pytest.approx(expected, abs=1e-5)
    assert quantizer.encode(weight).codes.tolist() == CODES
    assert torch.equal(quantizer(torch.zeros(4, 4)), y)  # the argument plays no part any more
    assert torch.equal(quantizer.encode(weight).decode(), y.detach())


def test_only_centroids_of_fixed_clusters_have_a_gradient():
    weight = example().float().requires_grad_()
    quantizer = KMeansQuantizer(2, shape=(4, 4))
    quantizer.calibrate(weight)
    quantizer(weight).sum().backward()
    assert not weight.grad.any() and quantizer.centroids.grad.tolist() == [4, 5, 3, 4]


def test_a_released_weight_is_itself_until_it_is_clustered_again():
    weight = example().float().requires_grad_()
    quantizer = KMeansQuantizer(2, shape=(4, 4))
    quantizer.release()
    y = quantizer(weight)
    assert torch.equal(y, weight)
    y.sum().backward()
    assert (weight.grad == 1).all() and not quantizer.centroids.grad.any()
    quantizer.calibrate(weight)
    assert quantizer(weight).unique().numel() == 4


def test_tensors_of_another_shape_take_the_nearest_centroid():
    quantizer = KMeansQuantizer(2, shape=(4, 4))
    quantizer.calibrate(example().float())
    assert quantizer(torch.tensor([-9.0, 0.4, 1.7, 9.0])).tolist() == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=1e-6)


def test_without_fixed_clusters_the_gradient_reaches_the_weights_too():
    weight = example().float().requires_grad_()
    quantizer = KMeansQuantizer(2)
    quantizer.calibrate(weight)
    upstream = torch.arange(16.0).reshape(4, 4)
    quantizer(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    assert quantizer.centroids.grad.tolist() == [26.0, 35.0, 31.0, 28.0]


def test_saved_clusters_come_back():
    weight = normal(4, 4, dtype=torch.float)
    quantizer, restored = (KMeansQuantizer(3, shape=(4, 4)) for _ in range(2))
    quantizer.calibrate(weight)
    restored.load_state_dict(quantizer.state_dict())
    assert torch.equal(restored(torch.zeros(4, 4)), quantizer(weight))


@pytest.mark.parametrize("n, bits, expected", [(16, 2, 512 / 160), (10**6, 4, 32e6 / (4e6 + 512)), (1024, 8, 2.0)])
def test_compression_rate_counts_the_codebook(n, bits, expected):
    assert compression_rate(n, bits) == pytest.approx(expected)
