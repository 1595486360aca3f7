"The head that scikit-learn alone comes to, on all rows at once: what every history of expansions must end at."
import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler


def targets(y, c): return 2.*np.eye(c)[y] - 1


def divisors(x):
    "The geometric mean of each feature's deviation and the median one; a tenth of the median at least"
    std = StandardScaler().fit(x).scale_
    varies = x.std(0) > 1e-6*np.abs(x.mean(0))
    typical = np.median(std[varies])
    return np.sqrt(np.where(varies, np.maximum(std, .1*typical), typical)*typical)


def divided(x): return (x - x.mean(0))/divisors(x)


def scaled_ridge(x, t, alpha, new):
    "scikit-learn's ridge on features divided as ours are, and other features divided in the same way"
    return Ridge(alpha).fit(divided(x), t), (new - x.mean(0))/divisors(x)


def left_out(z, t, alphas):
    "scikit-learn's scores of each row from a ridge without it, for each strength: (n, classes, strengths)"
    return RidgeCV(alphas, store_cv_results=True, scoring='neg_mean_squared_error').fit(z, t).cv_results_


def best_scale(scores, y):
    "The factor that makes scores probabilities, by a plain search"
    k, n = scores.shape[1], len(y)
    t = np.full(scores.shape, 1/(n + k)); t[np.arange(n), y] = (n + 1)/(n + k)
    loss = lambda v: -(t*log_softmax(np.exp(v)*scores)).sum(1).mean()
    return np.exp(minimize_scalar(loss, bounds=(np.log(.01), np.log(100)), method='bounded',
                                  options=dict(xatol=1e-6)).x)


def log_softmax(s): return s - np.logaddexp.reduce(s, axis=1, keepdims=True)


def losses(scores, y): return -log_softmax(best_scale(scores, y)*scores)[np.arange(len(y)), y]


def choice(x, y, k, alphas=None):
    "The strongest penalty within one standard error of the least log loss of left-out rows, and these rows' scores"
    z = divided(x)
    if alphas is None: alphas = np.logspace(-4, 2, 13)*(z**2).sum()/min(len(z) - 1, z.shape[1])
    scores = left_out(z, targets(y, k), alphas)
    each = np.stack([losses(scores[:,:,i], y) for i in range(len(alphas))])
    worse = each - each[each.mean(1).argmin()]
    last = np.flatnonzero(worse.mean(1) <= worse.std(1)/np.sqrt(len(y)))[-1]
    return alphas[last], scores[:,:,last]


def joint_logits(x, y, k, new):
    "Logits of `new` (m, d) from one fit to all rows x (n, d) with classes y, and its strength"
    alpha, scores = choice(x, y, k)
    ridge, z = scaled_ridge(x, targets(y, k), alpha, new)
    return best_scale(scores, y)*ridge.predict(z), alpha
