"""Deep Q-learning on a chain of states, with a replay memory and a target network: layers make their parameters when
they see their first input, and so the agent makes its optimizer when it first learns."""

import numpy as np

PORT = """
-import numpy as np
+import numpy as np
+import fastopt

-            self.optimizer = RMSProp(lr=0.02)
+            self.optimizer = fastopt.RMSProp([layer.params for layer in self.q.layers], lr=0.02, decay=0.95, eps=0.1)

-        self.optimizer.update(self.q.layers, grads)
+        self.optimizer.step(grads)
"""
REPLACED = ["RMSProp"]


class LazyLinear:
    def __init__(self, units, rng):
        self.units, self.rng, self.params = units, rng, {}

    def __call__(self, x):
        if not self.params:
            bound = np.sqrt(6 / (x.shape[1] + self.units))
            self.params["weight"] = self.rng.uniform(-bound, bound, (x.shape[1], self.units))
            self.params["bias"] = np.zeros(self.units)
        return x @ self.params["weight"] + self.params["bias"]


class QNetwork:
    def __init__(self, hidden, actions, rng):
        self.layers = [LazyLinear(hidden, rng), LazyLinear(actions, rng)]

    def __call__(self, states):
        self.x = states
        self.h = np.tanh(self.layers[0](states))
        return self.layers[1](self.h)

    def backward(self, dq):
        dh = dq @ self.layers[1].params["weight"].T * (1 - self.h**2)
        return [
            {"weight": self.x.T @ dh, "bias": dh.sum(axis=0)},
            {"weight": self.h.T @ dq, "bias": dq.sum(axis=0)},
        ]


class RMSProp:
    def __init__(self, lr, decay=0.95, eps=0.1):
        self.lr, self.decay, self.eps, self.squares = lr, decay, eps, {}

    def update(self, layers, grads):
        for i, layer in enumerate(layers):
            for name in layer.params:
                g = grads[i][name]
                mean = self.squares.get((i, name), 0.0)
                self.squares[i, name] = self.decay * mean + (1 - self.decay) * g * g
                layer.params[name] -= self.lr * g / (np.sqrt(self.squares[i, name]) + self.eps)


class Agent:
    def __init__(self, states, actions, rng):
        self.states, self.actions, self.rng = states, actions, rng
        self.q, self.target = QNetwork(24, actions, rng), QNetwork(24, actions, rng)
        self.optimizer = None

    def act(self, state, epsilon):
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.actions))
        return int(np.argmax(self.q(np.eye(self.states)[[state]])[0]))

    def synchronize(self):
        for layer, other in zip(self.target.layers, self.q.layers, strict=True):
            layer.params = {name: param.copy() for name, param in other.params.items()}

    def learn(self, batch, gamma=0.9):
        states, actions, rewards, following, done = (np.array(column) for column in zip(*batch, strict=True))
        values = self.q(np.eye(self.states)[states])
        if self.optimizer is None:
            self.optimizer = RMSProp(lr=0.02)
            self.synchronize()
        targets = rewards + gamma * (1 - done) * self.target(np.eye(self.states)[following]).max(axis=1)
        rows = np.arange(len(batch))
        error = values[rows, actions] - targets
        dq = np.zeros_like(values)
        dq[rows, actions] = np.clip(error, -1, 1) / len(batch)
        grads = self.q.backward(dq)
        self.optimizer.update(self.q.layers, grads)
        return float(np.mean(np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)))


def chain(state, action, length):
    """One step to the right or back to the left; the end of the chain pays 1, its beginning a little."""
    following = min(state + 1, length - 1) if action == 1 else max(state - 1, 0)
    done = following == length - 1
    return following, 1.0 if done else 0.05 * (following == 0), float(done)


def train(steps=220, batch_size=32, length=6):
    rng = np.random.default_rng(7)
    agent, memory, losses, state = Agent(length, 2, rng), [], [], 0
    for step in range(steps):
        action = agent.act(state, epsilon=max(0.1, 1 - step / 200))
        following, reward, done = chain(state, action, length)
        memory.append((state, action, reward, following, done))
        state = 0 if done else following
        if len(memory) >= batch_size:
            batch = [memory[i] for i in rng.integers(len(memory), size=batch_size)]
            losses.append(agent.learn(batch))
        if agent.optimizer and step % 50 == 0:
            agent.synchronize()
    return losses
