"""The help texts of the commands that take KEY=VALUE alone: their keys, and what they print."""

EVAL = """\
keys:
  run                        directory of the run, finished or interrupted
  dataset                    another data set, as in `metarun dataset=OTHER`; images are resized to those of the run
  dataset.KEY                a setting of the data set, such as dataset.source=DIR
  way, shot                  classes of a task, support examples of each class; not every method can have another way
  eval_query_shot            query examples of each class
  eval_tasks, eval_seed      number of the test tasks, and what they are drawn by
  ensemble                   how many of the parameters that the run has kept are tested together, the best ones
  method.eval_inner_steps    inner steps, where the method has them; likewise other method.eval_KEY
  method.query_statistics    whose statistics normalise the queries: query (transductive), support, or each
                             (the support set and that one query)
  method.inner_reduction     how the inner loss is summed, where the method has one: mean, sum or class_sum
  memory.KEY                 how tasks are computed on a device, such as memory.stream=true
  GROUP._target_             of a run of code of your own that --config-dir does not name: its function, as when it was
                             trained. What is called never comes from the run's directory
  code                       any: test it though the source of that code has changed
  protocol                   sweep: what the same parameters score under every convention of the literature, one at a
                             time, with the difference to the run's own test; the other keys are those of all rows

of a run of metarun-rl, besides eval_tasks, eval_seed, method.eval_KEY and memory.KEY:
  env                        another environment, whose observations and actions are of the same sizes
  env.KEY                    a setting of the environment, such as env.episodes=100

The result is printed, and written into DIR/evaluations. What is not given is as in the run.
"""

PREDICT = """\
keys:
  run        directory of the run, finished or interrupted; its data are not needed
  support    a folder with a folder of pictures for each class; their numbers may differ. Of a run on arrays, FILE.npz or
             a folder of .npy files, with x and y
  query      a folder of pictures, in folders or not; of arrays, FILE.npz or a folder, with x
  invert     whether light and dark change places: true, false, or auto (the default), which does so with pictures that
             are dark on light where the run's data are light on dark
  links      which links to folders are followed: inside (the default; others are refused by name), or follow (all)
  range      of grey pictures of more than 8 bits, what is black and what is white: [BLACK,WHITE], or file, the least and
             the greatest value of each; the default is that of the run's data
  query_statistics
             whose statistics normalise the pictures: support, each (the support set and that picture), query (all of the
             query together: an answer then depends on the others), or auto (the default), the run's own but never query
  output     the folder to write in; the default is predictions/NAME/ID in that of the run, NAME being
             that of the query and ID another for other pictures
  GROUP._target_, code   for code of your own, as `metarun-eval --help` says

Prints the likeliest class of each picture, and writes probabilities.csv and predictions.png.
"""

COMPARE = """\
keys:
  run, with  directories of the two runs, finished or interrupted
  protocol   same (the default): different protocols are refused, naming the keys; any: compared all the same
  KEY        what is to be another than in the runs' own tests, in both, as `metarun-eval --help` lists it: eval_tasks, ...

Prints both values and their difference, second less first, with its 95% interval over the same tasks, and writes it to
evaluations/ in the directory of the first. A convention that only one of the two methods knows is no difference.
"""

EXPORT = """\
keys:
  run                directory of the run, finished or interrupted
  output             the folder to write to
  way, shot          classes of a task and examples of each (default: as the run); not every method can have another way
  query_statistics   whose statistics normalise the queries, as in metarun-predict
  GROUP._target_     of a run of code of your own: its function, as when it was trained; code=any takes changed source

Writes load.py, a short program; export.json, which says what goes in and comes out; params.npz, the parameters;
adapt.stablehlo and predict.stablehlo, the functions; and flatbuffers.zip, by which JAX reads them. What is written has
been tried: its answers are metarun's own within one millionth, or nothing is written.
"""

REPLAY = """\
keys:
  run        directory of a run that has ended because a number was not finite
  KEY        a key of the run, to see what another value would have done: outer_lr, method.inner_lr, precision, ...

Prints loss and gradient norm of the step's tasks, those that are not finite first, and what the step leaves behind; the
tasks themselves go to DIR/diverged/tasks.npz. Exits with 0 if the step is finite now, and with 1 if it is not.
"""

REPRODUCE = """\
keys:
  seeds      how many, from seed 0 on (default: 1); the verdict then covers how much seeds differ
  output     directory that holds one for each seed (default: outputs/reproduce/PAPER/CELL)
  KEY        any key of the run, such as dataset.source=DIR or eval_tasks=5000

The same command resumes, and adds seeds. A cell that ends in _quick is a short version for two CPU cores: it is held to what
the same command has given us, and checks an installation.

verdict, by exit code: the difference from the published value, with its 95% interval over test tasks and seeds, lies
  0  reproduced: within the margin that the experiment states
  3  not reproduced: beyond it
  4  undecided: across it; or a check has failed
Other codes are those of the run: 1 the system refused something, 2 a mistake in a setting, 75 stopped, to be continued.
"""
