"""What `sail-train COMMAND` does, one module a command; `COMMANDS` is the list.

A command is `run(arguments) -> exit code` with a parser of its own. Heavy imports stand inside the functions, so that
`--help` and a mistake answer at once.
"""

COMMANDS = {
    "run": ("sail_train.commands.run:run", "train a recipe, stage after stage, or one stage"),
    "config": ("sail_train.commands.show:run", "print a composed config and where each value comes from"),
    "model": ("sail_train.commands.model:run", "tell a model's parts, parameters, tokens, FLOPs and memory"),
    "eval": ("sail_train.commands.evaluate:run", "score a model on held-out shards"),
    "chat": ("sail_train.commands.chat:run", "ask a model about an image"),
    "serve": ("sail_train.commands.serve:run", "serve a model: an OpenAI-compatible endpoint and a web page"),
    "assemble": ("sail_train.commands.assemble:run", "make a model of downloaded parts and a fresh adapter"),
    "export": ("sail_train.commands.export:run", "write a model as a standalone Hugging Face folder"),
    "import": ("sail_train.commands.import_model:run", "make a model of a released SAIL-VL2 folder"),
    "report": ("sail_train.commands.report:run", "write the HTML report of a recipe's runs"),
    "data synth": ("sail_train.data.synth.run:run", "make shards of scanned digits, or what a rule engine draws"),
    "data import": ("sail_train.data.tools.importing:run", "make shards of foreign records, images and videos"),
    "data trace": ("sail_train.commands.trace:run", "list the samples of each step of a stage"),
    "data index": ("sail_train.data.tools.indexing:run", "write where each sample of shards is, and its checksum"),
    "data check": ("sail_train.data.tools.check:run", "read every sample of shards and say what is wrong"),
    "data score": ("sail_train.data.tools.score:run", "let a judge score how rich and how well aligned samples are"),
    "data filter": ("sail_train.data.tools.filter:run", "keep the samples for which conditions on their index hold"),
    "data dedupe": ("sail_train.data.tools.dedupe:run", "find samples that are there twice, or in evaluation sets"),
    "data balance": ("sail_train.data.tools.balance:run", "say how often sources and samples should be seen"),
    "data scores-from": ("sail_train.data.tools.scores_from:run", "write pass rates of the sample loop to the index"),
    "data inspect": ("sail_train.data.tools.inspect:run", "show samples of shards as the model will see them"),
}
"""Name (one or two words) -> "module:function", and what it does."""
