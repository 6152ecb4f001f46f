"""The papers' equations in plain Python floats, sample by sample and class by class.

Written from the papers, not from the code that is tested. Logits and features are nested lists.
"""

import math
from itertools import permutations


def softmax(logits, temperature=1.0):
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [one / sum(powers) for one in powers]


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def mse(student, teacher):
    rows = zip(student, teacher, strict=True)
    return mean((a - b) ** 2 for s, t in rows for a, b in zip(s, t, strict=True))


def without(values, index):
    return [value for number, value in enumerate(values) if number != index]


def dkd(student, teacher, labels, temperature=4.0, alpha=1.0, beta=8.0):
    """Zhao et al. 2022, equation 7."""
    losses = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        own = kl([p[label], sum(without(p, label))], [q[label], sum(without(q, label))])
        others = kl(
            softmax(without(t, label), temperature), softmax(without(s, label), temperature)
        )
        losses.append(temperature**2 * (alpha * own + beta * others))
    return mean(losses)


def nkd(student, teacher, labels, temperature=1.0, gamma=1.5):
    """Yang et al. 2023: the label's term, and the others' normalised among themselves."""
    losses = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        own = softmax(t)[label] * math.log(softmax(s)[label])
        p, q = (softmax(without(z, label), temperature) for z in (t, s))
        others = sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        losses.append(-(own + gamma * temperature**2 * others))
    return mean(losses)


def pearson(u, v):
    """Pearson's correlation coefficient."""
    a, b = ([x - mean(one) for x in one] for one in (u, v))
    covariance = sum(x * y for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def dist(student, teacher, temperature=1.0, beta=1.0, gamma=1.0):
    """Huang et al. 2022, equations 8 and 9, times the code's T²."""
    q, p = ([softmax(z, temperature) for z in logits] for logits in (student, teacher))
    inter = mean(1 - pearson(a, b) for a, b in zip(q, p, strict=True))
    columns = [[row[number] for row in q] for number in range(len(q[0]))]
    theirs = [[row[number] for row in p] for number in range(len(q[0]))]
    intra = mean(1 - pearson(a, b) for a, b in zip(columns, theirs, strict=True))
    return temperature**2 * (beta * inter + gamma * intra)


def wttm(student, teacher, temperature=4.0):
    """Zheng & Yang 2024, equations 7, 22 and 23."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        powers = [one ** (1 / temperature) for one in softmax(t)]
        smooth = [one / sum(powers) for one in powers]
        losses.append(sum(powers) * kl(smooth, softmax(s)))
    return mean(losses)


def bucket_wttm(student, teacher, kept, temperature=4.0):
    """The divergence over the kept classes and all others as one, the power sum over all."""
    losses = []
    for s, t, ids in zip(student, teacher, kept, strict=True):
        powers = [one ** (1 / temperature) for one in softmax(t)]
        smooth = [one / sum(powers) for one in powers]
        outcomes = []
        for p in (smooth, softmax(s)):
            rest = math.fsum(one for number, one in enumerate(p) if number not in ids)
            outcomes.append([*(p[number] for number in ids), rest])
        losses.append(sum(powers) * kl(*outcomes))
    return mean(losses)


def standardize(logits):
    """Sun et al. 2024, algorithm 1 with base temperature 1."""
    centre = mean(logits)
    deviation = math.sqrt(mean((z - centre) ** 2 for z in logits))
    return [(z - centre) / deviation for z in logits]


# --------------------------------------------------------------------------- features


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def norm(a):
    return math.sqrt(dot(a, a))


def cosine(student, teacher):
    return mean(1 - dot(s, t) / (norm(s) * norm(t)) for s, t in zip(student, teacher, strict=True))


def attention(student, teacher):
    """Zagoruyko & Komodakis 2017: sums of squares over channels, each map over its norm."""
    losses = []
    for maps in zip(student, teacher, strict=True):
        looks = []
        for one in maps:
            height, width = len(one[0]), len(one[0][0])
            look = [sum(c[y][x] ** 2 for c in one) for y in range(height) for x in range(width)]
            looks.append([value / norm(look) for value in look])
        losses += [(a - b) ** 2 for a, b in zip(*looks, strict=True)]
    return mean(losses)


def huber(a, b):
    gap = abs(a - b)
    return gap * gap / 2 if gap <= 1 else gap - 0.5


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def rkd(student, teacher, distance_weight=25.0, angle_weight=50.0):
    """Park et al. 2019: over all tuples of different samples."""
    pairs = list(permutations(range(len(student)), 2))
    triples = list(permutations(range(len(student)), 3))

    def distances(features):
        found = [norm(minus(features[i], features[j])) for i, j in pairs]
        return [one / mean(found) for one in found]

    def angles(features):
        edges = ((minus(features[i], features[j]), minus(features[k], features[j]))
                 for i, j, k in triples)  # fmt: skip
        return [dot(a, b) / (norm(a) * norm(b)) for a, b in edges]

    def loss(relation):
        return mean(huber(a, b) for a, b in zip(relation(student), relation(teacher), strict=True))

    return distance_weight * loss(distances) + (angle_weight * loss(angles) if triples else 0.0)
