"""Train and save the TensorFlow examples: `two-signatures/` (a SavedModel) and `tiny.keras`.

python examples/make/tensorflow_models.py [OUT_DIR]
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

SPECIES = ("setosa", "versicolor", "virginica")
# Mean and spread of sepal length and width, petal length and width (cm) of the three, to draw flowers from.
MEANS = np.array([[5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0]])
SPREAD = np.array([0.4, 0.3, 0.35, 0.2])


def flowers(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Measurements and species of made-up irises."""
    rng = np.random.default_rng(seed)
    species = rng.integers(0, len(SPECIES), count)
    return rng.normal(MEANS[species], SPREAD).astype(np.float32), species.astype(np.int32)


class Flowers(tf.Module):
    """Softmax regression with two ways in: measurements to scores, and species' names to what the model knows of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.zeros((4, len(SPECIES))))
        self.bias = tf.Variable(tf.zeros(len(SPECIES)))
        numbers = tf.range(len(SPECIES), dtype=tf.int64)
        self.index = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(SPECIES), numbers), -1)

    def fit(self, x: np.ndarray, y: np.ndarray, steps: int = 400, rate: float = 0.2) -> None:
        for _ in range(steps):
            with tf.GradientTape() as tape:
                logits = x @ self.weights + self.bias
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            variables = (self.weights, self.bias)
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(rate * gradient)

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def classify(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = tf.nn.softmax(x @ self.weights + self.bias)
        return {"scores": scores, "species": tf.gather(tf.constant(SPECIES), tf.argmax(scores, 1))}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="name")])
    def look_up(self, name: tf.Tensor) -> dict[str, tf.Tensor]:
        lower = tf.strings.lower(tf.strings.strip(name), encoding="utf-8")
        return {"normal": lower, "index": self.index.lookup(lower)}


def save_two_signatures(folder: Path) -> None:
    model = Flowers()
    model.fit(*flowers(600, seed=1))
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.classify, "strings": model.look_up})


def save_tiny_keras(file: Path) -> None:
    """A functional model with named input and output; the sum of squares decides, so that the hidden layer is needed."""
    keras.utils.set_random_seed(7)
    features = keras.Input((4,), name="features")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(features)
    outputs = keras.layers.Dense(1, activation="sigmoid", name="probability")(hidden)
    model = keras.Model(features, outputs, name="tiny")
    x = np.random.default_rng(7).normal(size=(512, 4)).astype(np.float32)
    y = (np.square(x).sum(1) > 3.4).astype(np.float32)
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss="binary_crossentropy")
    model.fit(x, y, epochs=20, batch_size=64, verbose=0)
    # without the optimizer's state, which only further training needs
    keras.Model(features, outputs, name="tiny").save(file)


def main(out: Path) -> None:
    save_two_signatures(out / "two-signatures")
    save_tiny_keras(out / "tiny.keras")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
