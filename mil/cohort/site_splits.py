"""Preserved-site cross-validation: every site is tested by models that saw none of its slides.

Slides of one hospital share stain, scanner and patients' mix, and a model that learned the hospital looks good on its
other slides (Howard et al., Nature Communications 12, 2021). As there, sites are dealt out to the folds by an
optimiser such that each class is spread as evenly as whole sites allow. Sites that share a patient count as one.
scikit-learn's stratified group folds are greedy and leave classes uneven where groups are few and large, as sites are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, hstack, kron
from scipy.sparse.csgraph import connected_components

from mil.cohort.cohort import Cohort, shown
from tiling.jobs.errors import RequestError

_GAP = 0.02  # how far from the best balance a solution may be
_NODES = 20  # of the optimiser's tree: a limit that does not depend on the machine's speed
_VARIETY = 0.02  # weight of random preferences, by which repeats differ
Indices = NDArray[np.int64]


def site_groups(cohort: Cohort) -> NDArray[np.int64]:
    """(S,) number of each bag's group of sites. RequestError where a slide has no site."""
    sites = cohort.sites
    if sites is None:
        raise RequestError(
            "--split site needs the column 'site' in the slide table: the hospital or scanner of a slide"
        )
    without = cohort.slide_ids[sites == ""].tolist()
    if without:
        raise RequestError(f"--split site needs the column 'site' in every row; it is empty for {shown(without)}")
    names, of_site = np.unique(sites, return_inverse=True)
    bags = cohort.bags_of(np.arange(len(sites)))
    patients, of_patient = np.unique(cohort.patient_ids[bags], return_inverse=True)
    nodes = len(names) + len(patients)
    links = coo_array((np.ones(len(of_site)), (of_site, len(names) + of_patient)), shape=(nodes, nodes))
    groups: NDArray[np.int64] = connected_components(links, directed=False)[1][of_site]
    first = np.unique(bags, return_index=True)[1]  # slides of one patient are in one group
    return np.unique(groups[first], return_inverse=True)[1]


def site_parts(cohort: Cohort, groups: NDArray[np.int64], parts: int, entropy: Sequence[int]) -> list[Indices]:
    """`parts` test parts of whole groups, each class spread evenly. RequestError where that cannot be."""
    counts = np.zeros((groups.max() + 1, sum(len(strata.names) for strata in cohort.strata)))  # (G, C)
    np.add.at(counts, groups, np.hstack([strata.members for strata in cohort.strata]))
    _require_sites(cohort, counts, parts)
    everywhere = np.concatenate([[len(strata.names) == 2] * len(strata.names) for strata in cohort.strata])
    chosen = _deal_out(counts, everywhere, parts, np.random.default_rng(np.random.SeedSequence(tuple(entropy))))
    if chosen is None:
        of = " of each target" if len(cohort.strata) > 1 else ""
        raise RequestError(
            f"the {len(counts)} sites cannot be dealt out to {parts} folds so that each fold holds both classes{of}; "
            "use fewer --folds, or --split patient"
        )
    return [np.flatnonzero(chosen[groups] == part) for part in range(parts)]


def _require_sites(cohort: Cohort, counts: NDArray[np.float64], parts: int) -> None:
    sites = len(np.unique(cohort.sites)) if cohort.sites is not None else 0
    if len(counts) < parts:
        linked = f" ({sites} sites, but some share patients)" if sites > len(counts) else ""
        raise RequestError(
            f"{parts} folds need {parts} sites, found {len(counts)}{linked}; use fewer --folds, or --split patient"
        )
    names = [name for strata in cohort.strata for name in strata.names]
    scarce = {name: int(n) for name, n in zip(names, (counts > 0).sum(axis=0), strict=True) if n < 2}
    if scarce:
        raise RequestError(
            f"{', '.join(f'{name!r} occurs at {n} site' for name, n in scarce.items())}: the model would learn the "
            "site for the label, and no site is left to test it on; use --split patient, and do not trust the result"
        )


def _deal_out(
    counts: NDArray[np.float64], everywhere: NDArray[np.bool_], parts: int, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """Part (G,) of each group, by mixed-integer programming; None if no part can be without classes of `everywhere`.

    Variables: x (G * K) in {0, 1}, group g in part k; then the K * C deviations of a class's share from 1 / K.
    """
    n_groups, n_classes = counts.shape
    shares = csr_array(counts / counts.sum(axis=0)).T  # (C, G)
    held = kron(shares, np.eye(parts), format="csr")  # (C * K, G * K): share of class c in part k
    deviations = np.eye(n_classes * parts)
    one_part_each = hstack([kron(np.eye(n_groups), np.ones((1, parts))), csr_array((n_groups, n_classes * parts))])
    constraints = [
        LinearConstraint(one_part_each, 1, 1),
        LinearConstraint(hstack([held, -deviations]), -np.inf, 1 / parts),
        LinearConstraint(hstack([held, deviations]), 1 / parts, np.inf),
    ]
    if everywhere.any():
        present = kron(csr_array((counts[:, everywhere] > 0).astype(float)).T, np.eye(parts))
        none = csr_array((everywhere.sum() * parts, n_classes * parts))
        constraints.append(LinearConstraint(hstack([present, none]), 1, np.inf))
    binary = n_groups * parts
    preferences = _VARIETY / n_groups * rng.random(binary)
    found = milp(
        np.concatenate([preferences, np.ones(n_classes * parts)]),
        constraints=constraints,
        integrality=np.concatenate([np.ones(binary), np.zeros(n_classes * parts)]),
        bounds=Bounds(0, np.concatenate([np.ones(binary), np.full(n_classes * parts, np.inf)])),
        options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )
    if found.x is None:
        return None
    return np.asarray(found.x[:binary].reshape(n_groups, parts).argmax(axis=1))
