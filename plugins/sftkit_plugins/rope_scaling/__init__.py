"""Scaled rotary position embeddings, so that a model takes longer rows than it was made for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.api import (
    ConfigError,
    Field,
    Plugin,
    Problem,
    Verdict,
    base_configuration,
    base_options,
    dataclass,
    hookimpl,
    position_limit,
    train_value,
)
from sftkit_plugins.rope_scaling.rotary import (
    LENGTH,
    ORIGINAL,
    PARAMETERS,
    Rotary,
    check_applied,
    described,
    forget,
    rotary_modules,
    rotary_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftkit.api import PluginSet, PreparedRun, RunConfig

PLUGIN = "plugin rope_scaling"
Positive = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
OPTIONS = ("beta_fast", "beta_slow", "truncate", "attention_factor", "low_freq_factor", "high_freq_factor")
#: Llama 3.1's own values, which transformers does not know as defaults.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, **LLAMA3}


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Plugin):
    """Scales rotary position embeddings, so that the model takes longer rows than it was made for.

    Sources: Peng et al., 2023, YaRN (arXiv 2309.00071), sections 3.1 to 3.4 for dynamic and yarn; Chen et al., 2023,
    Position Interpolation (arXiv 2306.15595), section 2.3, for linear; the code of Llama 3.1 for llama3.
    """

    type: Annotated[
        Literal["yarn", "linear", "dynamic", "llama3"], Field(description="how the frequencies are scaled")
    ] = "yarn"
    factor: Annotated[
        float | None,
        Field(
            gt=1,
            allow_inf_nan=False,
            description="how much longer; by default data.max_length over the original length, rounded up",
        ),
    ] = None
    original_max_position_embeddings: Annotated[
        int | None, Field(gt=0, description="the original length in tokens; by default the model's")
    ] = None
    beta_fast: Annotated[
        Positive,
        Field(description="yarn: dimensions that turn more often in the original length stay; 32 by default"),
    ] = None
    beta_slow: Annotated[
        Positive, Field(description="yarn: dimensions that turn less often are interpolated; 1 by default")
    ] = None
    truncate: Annotated[
        bool | None, Field(description="yarn: round the bounds between them to whole dimensions; true by default")
    ] = None
    attention_factor: Annotated[
        Positive, Field(description="yarn: cosines and sines are multiplied by it; 0.1 ln(factor) + 1 by default")
    ] = None
    low_freq_factor: Annotated[
        Positive, Field(description="llama3: wavelengths above the original length over it are scaled; 1 by default")
    ] = None
    high_freq_factor: Annotated[
        Positive, Field(description="llama3: wavelengths below the original length over it stay; 4 by default")
    ] = None
    replace: Annotated[bool, Field(description="replace a scaling that the model has already")] = False

    @hookimpl
    def check_run(self, config: RunConfig, plugins: PluginSet) -> Iterator[Problem]:
        """Options of other types, models that cannot be scaled, and runs in which a type is not exact."""
        yield from self._option_problems()
        if "unsloth" in config.plugins:
            what = "unsloth scales positions itself, linearly, where its max_seq_length exceeds the model's"
            yield Problem(what, PLUGIN, "drop one of them; plugin peft trains LoRA with this one")
        if self.type == "dynamic" and (packers := sorted(plugins.fillers("make_packer"))):
            what = "dynamic scales a row by its longest document, so that packed documents would change each other"
            fix = f"use type=yarn, or drop plugin {packers[0]}"
            yield Problem(what, f"{PLUGIN}, option type", fix, ("plugins", "rope_scaling", "type"))
        if config.model.loaded:
            what = "the model is loaded already, with its rotary embeddings"
            yield Problem(what, PLUGIN, "pass the model's name, or load it with these rope_parameters yourself")
            return
        try:
            architecture = self._unscaled(config)
        except ConfigError:
            return  # the plugin that loads the model reports it
        try:
            self._change(rotary_of(architecture), config)
        except ConfigError as error:
            yield from error.problems

    def _option_problems(self) -> Iterator[Problem]:
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in PARAMETERS[self.type]:
                of = next(kind for kind, names in PARAMETERS.items() if name in names)
                key = ("plugins", "rope_scaling", name)
                yield Problem(f"only for type={of}", f"{PLUGIN}, option {name}", "remove it, or change the type", key)
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            small, large = (getattr(self, name) or DEFAULTS[name] for name in (low, high))
            if small >= large:
                what = f"{low} is {small:g}, which must be below {high}, {large:g}"
                yield Problem(what, f"{PLUGIN}, option {low}", "correct one of them")

    @hookimpl
    def model_options(self, config: RunConfig) -> dict[str, Any]:
        """The scaled ``rope_parameters``, with the number of positions; nothing if the model has them already."""
        return {} if config.model.loaded else self._change(rotary_of(self._unscaled(config)), config)

    @hookimpl(wrapper=True)
    def load_model(self, config: RunConfig) -> Iterator[None]:
        """Checks that the model computes with the scaled frequencies.

        Raises:
            ConfigError: if it does not.
        """
        model: PreTrainedModel = yield
        check_applied(model)
        return model

    @hookimpl
    def check_prepared(self, run: PreparedRun) -> Iterator[Verdict]:
        """How the positions are scaled, and whether the rows need it."""
        architecture, _ = base_configuration(run.config, run.plugins.model_options(run.config))
        rotary = rotary_of(architecture)
        what = f"positions are scaled: {described(rotary)}"
        longest = max((stats.longest for stats in run.data.stats.values()), default=0)
        longest = min(longest, run.config.data.max_length)  # longer ones are cut
        original = self.original_max_position_embeddings or rotary.original
        if original is not None and 0 < longest <= original:
            what += f", but no row is longer than {original:,} tokens, so that nothing is learned about longer ones"
            yield Verdict("rope scaling", "warn", what, "raise data.max_length, add longer rows, or drop the plugin")
            return
        size = int(train_value(run.config, "per_device_train_batch_size"))
        if self.type == "dynamic" and size > 1:
            what += f"; a batch of {size} rows is scaled by the longest of them"
            fix = "set train.per_device_train_batch_size=1, and train.gradient_accumulation_steps, or use type=yarn"
            yield Verdict("rope scaling", "warn", what, fix, "train.per_device_train_batch_size")
            return
        yield Verdict("rope scaling", "ok", what)

    @hookimpl
    def patch_kernels(self, model: PreTrainedModel) -> None:
        """With dynamic, each batch is scaled by its own rows alone, and not by those before it. Changes the model."""
        for module in rotary_modules(model):
            if module.rope_type == "dynamic":
                module.register_forward_pre_hook(forget)

    def _unscaled(self, config: RunConfig, options: Mapping[str, Any] | None = None) -> Any:
        """The configuration of the model without this plugin, or with its options.

        Raises:
            ConfigError: if it cannot be read.
        """
        known = base_options(config.model.name) | config.model.options
        return base_configuration(config, known | dict(options or {}))[0]

    def _change(self, rotary: Rotary, config: RunConfig) -> dict[str, Any]:
        """The arguments of ``from_pretrained`` that scale the embeddings.

        Raises:
            ConfigError: if the model is scaled already, in another way, or there is nothing to scale.
        """
        now, kind = rotary.now, rotary.now["rope_type"]
        if kind == self.type and self._is_there(rotary, config):
            return {}
        if kind != "default" and not self.replace:
            what = f"the model's positions are scaled already: {described(rotary)}"
            fix = "drop plugin rope_scaling to train it as it is, or set replace=true to scale the original length anew"
            raise ConfigError(Problem(what, PLUGIN, fix))
        original = self.original_max_position_embeddings or rotary.original
        if original is None:
            what = "the original length is not in the model's configuration"
            raise ConfigError(Problem(what, f"{PLUGIN}, option {ORIGINAL}", "set it to the length of pretraining"))
        factor = self.factor or float(math.ceil(config.data.max_length / original))
        if factor <= 1:
            what = f"nothing to scale: data.max_length is {config.data.max_length:,}, "
            what += f"and the model has {original:,} positions"
            raise ConfigError(Problem(what, PLUGIN, "raise data.max_length, set the option factor, or drop the plugin"))
        if self.truncate is False and rotary.layers:
            what = "truncate=false is ignored for models whose layers have different rotary embeddings"
            raise ConfigError(Problem(what, f"{PLUGIN}, option truncate", "remove it"))
        made = self._options(rotary, self._scaled(now, factor, original), original)
        self._require_accepted(made, config)
        return made

    def _require_accepted(self, options: Mapping[str, Any], config: RunConfig) -> None:
        """Check that transformers accepts the configuration, also when it is read back after the training.

        Raises:
            ConfigError: if it does not.
        """
        scaled = self._unscaled(config, options)
        what = f"transformers refuses this scaling for models of the type {scaled.model_type}"
        fix = "use another type, or drop the plugin"
        try:
            read = rotary_of(type(scaled).from_dict(scaled.to_dict()))
        except Exception as error:  # the classes of configurations have checks of their own
            reason = str(error).splitlines()[-1].strip().removeprefix("ValueError: ")
            raise ConfigError(Problem(f"{what}: {reason}", PLUGIN, fix)) from error
        if read.now != rotary_of(scaled).now:
            raise ConfigError(Problem(f"{what}: it is read back as {described(read)}", PLUGIN, fix))

    def _is_there(self, rotary: Rotary, config: RunConfig) -> bool:
        """Whether the model has a scaling of this type that is as the options say."""
        now = rotary.now
        factor = now.get("factor")
        known = {**DEFAULTS, ORIGINAL: rotary.original or round(getattr(rotary.text, LENGTH) / (factor or 1)), **now}
        known |= {"attention_factor": now.get("attention_factor") or 0.1 * math.log(factor or 1) + 1}
        given = {name: getattr(self, name) for name in ("factor", ORIGINAL, *OPTIONS)}
        if any(value is not None and value != known.get(name) for name, value in given.items()):
            return False
        return self.factor is not None or config.data.max_length <= (position_limit(rotary.text) or 0)

    def _scaled(self, now: Mapping[str, Any], factor: float, original: int) -> dict[str, Any]:
        """The parameters of the scaled layers, from those of the model."""
        kept = {*PARAMETERS[self.type]} - {"attention_factor"} if now["rope_type"] == self.type else set()
        dropped = {"factor", ORIGINAL, *(name for names in PARAMETERS.values() for name in names)} - kept
        made = {name: value for name, value in now.items() if name not in dropped}
        made |= {"rope_type": self.type, "factor": factor}
        if self.type in ("yarn", "llama3"):
            made[ORIGINAL] = original
        if self.type == "llama3":
            made = LLAMA3 | made
        return made | {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}

    def _options(self, rotary: Rotary, scaled: dict[str, Any], original: int) -> dict[str, Any]:
        text = rotary.text
        found = {
            "rope_parameters": {**rotary.all, rotary.layers: scaled} if rotary.layers else scaled,
            # dynamic is computed from the original length
            LENGTH: original if self.type == "dynamic" else round(original * scaled["factor"]),
        }
        if hasattr(text, ORIGINAL):  # of Phi-3, which overrides the parameters
            found[ORIGINAL] = original
        if getattr(text, "head_dim", 0) is None:  # which transformers does not derive for yarn and dynamic
            found["head_dim"] = text.hidden_size // text.num_attention_heads
        return {rotary.part: found} if rotary.part else found
