"""CapsNetClassifier, as who uses scikit-learn uses it, and scikit-learn's own checks of it."""

import inspect
import io
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from process import run_python
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import capsnet
from capsnet import CapsNetClassifier

TINY: dict[str, Any] = {"width": 0.08, "decoder": False, "epochs": 3, "learning_rate": 0.005, "random_state": 0}

# The test run checks types when an object is made; scikit-learn wants whatever is given kept, and looked at in `fit`.
CapsNetClassifier.__init__ = inspect.unwrap(CapsNetClassifier.__init__)

EXPECTED_FAILURES = {
    "check_methods_subset_invariance": "numbers are float32: beside other images an answer differs by 2e-7, not 1e-7",
}


@parametrize_with_checks([CapsNetClassifier(**TINY)], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
@pytest.mark.filterwarnings("ignore:.*no square image")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """Pictures of 8×8 pixels, 0 to 16, of noughts, ones and twos."""
    images, labels = load_digits(n_class=3, return_X_y=True)
    return images[:240].reshape(-1, 8, 8), np.array(["nought", "one", "two"])[labels[:240]]


@pytest.fixture(scope="module")
def trained(digits):
    return CapsNetClassifier(**TINY).fit(*digits)


def test_it_learns_digits_with_names_for_labels(trained, digits):
    images, names = digits
    assert trained.score(images, names) > 0.9
    assert list(trained.classes_) == ["nought", "one", "two"]
    assert (trained.n_features_in_, trained.image_shape_, trained.pixel_range_) == (64, (1, 8, 8), (0.0, 16.0))
    probabilities = trained.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (trained.classes_[probabilities.argmax(axis=1)] == trained.predict(images)).all()
    assert [row["epoch"] for row in trained.history_] == [1, 2, 3]


def test_images_may_come_in_every_form(trained, digits):
    images, names = digits
    forms = [images.reshape(-1, 64), images[..., None], images[:, None]]
    for form in forms:
        again = CapsNetClassifier(**TINY).fit(form, names)
        np.testing.assert_array_equal(again.predict_proba(form), trained.predict_proba(images))
    np.testing.assert_array_equal(trained.predict(forms[0]), trained.predict(images))
    coloured = np.repeat(images[..., None], 3, axis=3)
    model = CapsNetClassifier(**{**TINY, "epochs": 1}).fit(coloured, names)
    assert model.image_shape_ == (3, 8, 8)
    with pytest.raises(ValueError, match=r"trained on images of \(3, 8, 8\), not of shape \(8, 8\)"):
        model.predict(images)
    with pytest.raises(ValueError, match="images are arrays of shape"):
        model.fit(np.zeros((4, 8, 8, 8)), [0, 1, 0, 1])


def test_bytes_are_taken_as_they_are(digits):
    images, names = digits
    model = CapsNetClassifier(**{**TINY, "epochs": 1}).fit((images * 4).astype(np.uint8), names)
    assert model.pixel_range_ == (0.0, 255.0)
    seen = model._images(np.full((1, 8, 8), 200, dtype=np.uint8))
    assert seen.dtype == torch.uint8
    assert int(seen.max()) == 200


def test_the_kernel_fits_the_image():
    for side, kernel in ((3, 2), (5, 2), (8, 2), (12, 4), (17, 5), (27, 9), (28, 9), (40, 9)):
        model = CapsNetClassifier(width=0.01)
        model.image_shape_, model.classes_ = (1, side, side + 1), np.arange(2)
        assert model._build().config["kernel_size"] == kernel


def test_the_recipe_gives_way_to_what_is_said_beside_it():
    recipe = capsnet.Recipe(epochs=7, batch_size=64, learning_rate=0.002, final_learning_rate=0.001, seed=5)
    model = CapsNetClassifier(recipe=recipe, epochs=2, learning_rate=0.01)
    model.image_shape_ = (1, 28, 28)
    made = model._recipe(100_000, seed=9)
    assert (made.epochs, made.batch_size, made.learning_rate, made.final_learning_rate) == (2, 64, 0.01, 0.005)
    assert made.seed == 9
    assert CapsNetClassifier(recipe=recipe)._recipe(200, seed=0).batch_size == 8  # small sets, small batches
    with pytest.raises(ValueError, match="without crop"):
        CapsNetClassifier(recipe=capsnet.Recipe(crop=8)).fit(np.zeros((9, 9, 9)), [0, 1, 2] * 3)


def test_random_state_decides_and_nothing_else_is_touched(trained, digits):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again, other = (CapsNetClassifier(**{**TINY, "random_state": seed}).fit(*digits) for seed in (0, 1))
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(again.predict_proba(digits[0]), trained.predict_proba(digits[0]))
    assert not np.array_equal(other.predict_proba(digits[0]), trained.predict_proba(digits[0]))


def test_fit_says_and_leaves_nothing(digits, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    CapsNetClassifier(**{**TINY, "epochs": 1}).fit(*digits)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_joblib_keeps_it(trained, digits):
    kept = io.BytesIO()
    joblib.dump(trained, kept)
    kept.seek(0)
    np.testing.assert_array_equal(joblib.load(kept).predict_proba(digits[0]), trained.predict_proba(digits[0]))


def test_pipelines_and_searches(digits):
    images, names = digits
    halved = FunctionTransformer(lambda images: images / 2)
    assert cross_val_score(make_pipeline(halved, CapsNetClassifier(**TINY)), images, names, cv=2).min() > 0.8
    search = GridSearchCV(CapsNetClassifier(**TINY), {"iterations": [1, 2], "epochs": [1]}, cv=2).fit(images, names)
    assert search.best_params_["iterations"] in (1, 2)
    assert clone(search.best_estimator_).get_params()["epochs"] == 1


def test_what_it_trained_can_be_saved(trained, tmp_path):
    capsnet.save(trained.model_, tmp_path / "run", classes=list(trained.classes_))
    assert capsnet.load(tmp_path / "run").config == trained.model_.config


def test_without_scikit_learn_one_line_says_how_to_get_it():
    said = run_python("""
        import sys
        import capsnet
        assert "sklearn" not in sys.modules
        import importlib.util
        importlib.util.find_spec = lambda name: None
        from capsnet import *
        try:
            capsnet.CapsNetClassifier
        except capsnet.InputError as error:
            print(error)
        """)
    assert said == "CapsNetClassifier needs scikit-learn; install it with: pip install 'capsnet[sklearn]'\n"


def test_bytes_are_numbers_where_training_saw_others():
    digits = capsnet.open_dataset("mnist", "test").select(slice(40))
    pixels = (digits.images.numpy() // 16).astype(float)  # 0 to 15
    model = capsnet.CapsNetClassifier(epochs=1, decoder=False, width=0.1).fit(pixels, digits.labels.numpy())
    assert np.array_equal(model.predict_proba(pixels), model.predict_proba(pixels.astype(np.uint8)))


def test_rows_of_numbers_are_no_colour_images():
    images = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)
    model = capsnet.CapsNetClassifier(epochs=1, decoder=False, width=0.1).fit(images, np.arange(12) % 2)
    with pytest.raises(capsnet.InputError, match=r"trained on images of \(3, 20, 20\), not on rows of numbers"):
        model.predict(images.reshape(12, -1))
