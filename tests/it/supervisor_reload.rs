//! A Procfile that changes under its supervisor, and hooks around the starts and ends of processes.

use std::time::Instant;

use serde_json::Value;

use crate::supervisor_control::Stack;
use crate::supervisor_control::is_alive;
use crate::support::PATIENCE;

fn group(stack: &Stack, name: &str) -> String {
    stack.field(name, "group").to_string()
}

#[test]
fn what_is_new_gone_or_changed_is_started_stopped_and_restarted_and_nothing_else() {
    let stack = Stack::new("web: exec sleep 1000\nworker: exec sleep 1000\nold: exec sleep 1000\n");
    stack.check("up -d", 0);
    let (web, worker, old) = (group(&stack, "web"), group(&stack, "worker"), group(&stack, "old"));
    assert!(stack.check("reload", 0).ends_with("nothing has changed\n"));
    stack.write("Procfile", "web: exec sleep 2000\nworker: exec sleep 1000\nfresh: echo on $PORT; exec sleep 1000\n");
    let plan = "stop old (no longer in the Procfile)\nrestart web (its command changed)\nunchanged worker\n\
                start fresh (new in the Procfile)\n";
    assert_eq!(stack.check("reload --dry-run", 0), plan);
    assert_eq!(stack.check("ps --short", 0), "web:running worker:running old:running\n", "nothing was done");

    let out = stack.check("reload", 0);
    let results = out.strip_prefix(plan).unwrap_or_else(|| panic!("the plan comes first: {out}"));
    assert!(results.contains("old    stopped (signal: terminated), and gone"), "{results}");
    assert!(results.contains("web    started, pid") && results.contains("fresh  started, pid"), "{results}");
    assert_eq!(stack.check("ps --short", 0), "web:running worker:running fresh:running\n");
    assert_eq!(group(&stack, "worker"), worker, "it was left alone");
    assert!(group(&stack, "web") != web && !is_alive(&web) && !is_alive(&old));
    let start = Instant::now();
    while !stack.check("logs fresh --time off", 0).contains("fresh  | on 5200\n") {
        assert!(start.elapsed() < PATIENCE, "{}", stack.check("logs fresh", 0));
    }
    stack.check("stop old", 4);
    let output =
        stack.command(&["exec", "worker", "--", "sh", "-c", "echo $QUORATE_PORT_FRESH"]).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "5200", "it would find the new one at its next start");
    let events = stack.check("events", 0);
    assert!(events.contains("reload: stop old") && events.contains("\"action\":\"reload: restart web"), "{events}");

    // One that comes back is there again; what somebody has stopped is not started because it changed.
    stack.check("stop web", 0);
    stack.write("Procfile", "old: exec sleep 1000\nweb: exec sleep 3000\n");
    stack.write(".env", "COLOUR=blue\n");
    let json: Value = serde_json::from_str(&stack.check("reload --json", 0)).expect("JSON");
    let steps: Vec<String> =
        json["plan"].as_array().expect("a list").iter().map(|step| step["step"].to_string()).collect();
    assert_eq!(steps.join(" "), "\"stop\" \"stop\" \"start\" \"update\"", "{json}");
    assert_eq!(json["results"].as_array().map(Vec::len), Some(4));
    let web = json["plan"][3]["why"].as_str().expect("a text");
    let expected = "its command changed; its PORT 5000 becomes 5100; its environment changed: COLOUR; it stays stopped";
    assert_eq!(web, expected);
    assert_eq!(stack.check("ps --short", 0), "old:running web:exited\n", "in the order of the file");
    stack.write(".env", "COLOUR=red\n");
    let out = stack.check("reload", 0);
    assert!(out.contains("restart old (its environment changed: COLOUR)"), "{out}");
    stack.check("down", 0);
}

#[test]
fn files_that_do_not_parse_change_nothing_and_are_told_with_their_line() {
    let good = "a: exec sleep 1000\nb: exec sleep 1000\n";
    let stack = Stack::new(good);
    stack.check("up -d", 0);
    let groups = (group(&stack, "a"), group(&stack, "b"));
    let refused = |name: &str, text: &str, expected: &str| {
        stack.write(name, text);
        for line in ["reload", "reload --dry-run"] {
            let err = stack.check(line, 1);
            assert!(err.contains(expected), "{err}");
        }
        stack.write("Procfile", good);
        stack.write(".env", "");
    };
    refused("Procfile", "a: exec sleep 2000\na: exec sleep 1000\n", "Procfile:2: process \"a\" stands twice");
    refused("Procfile", "prose\n", "Procfile: no line names a process");
    refused("Procfile", "a: exec sleep 2000\n# @a colour=red\n", "Procfile:2: @a: unknown setting \"colour\"");
    refused("Procfile", "# @a after=b\n# @b after=a\na: x\nb: y\n", "wait for each other");
    refused("Procfile", "# @a relay=1:2\na: x\n", "Procfile:2: a: its relay= changed");
    refused(".env", "A=1\nnonsense\n", ".env:2:");
    assert_eq!((group(&stack, "a"), group(&stack, "b")), groups);
    assert_eq!(stack.check("ps --short", 0), "a:running b:running\n");
    // A command that fails at once is not the reload's plan that fails, but its result.
    stack.write("Procfile", "a: exec sleep 1000\n# @b cwd=nowhere\nb: exec sleep 1000\n");
    let err = stack.check("reload", 1);
    assert!(err.contains("chdir nowhere: not a directory"), "{err}");
    stack.check("down", 0);
}

#[test]
fn processes_that_swap_their_ports_wait_for_each_other() {
    // Whoever finds his port taken ends. The second is gone at once; the first takes its time to leave its port to him.
    let command = |lingers: &str| {
        format!(
            "mkdir port.$PORT || exit 9; trap 'sleep {lingers}; rmdir port.$PORT; exit 0' TERM; echo up; \
             while :; do sleep 0.02; done"
        )
    };
    let (slow, quick) = (command("1"), command("0"));
    let stack = Stack::new(&format!("# @* ready=log=up\na: {slow}\nb: {quick}\n"));
    stack.check("up -d --wait", 0);
    stack.write("Procfile", &format!("# @* ready=log=up\nb: {quick}\na: {slow}\n"));
    let out = stack.check("reload", 0);
    let plan = "restart b (its PORT 5100 becomes 5000)\nrestart a (its PORT 5000 becomes 5100)\n";
    assert!(out.starts_with(plan), "{out}");
    stack.check("wait --timeout 60s", 0);
    assert_eq!(stack.check("ps --short", 0), "b:ready a:ready\n");
    stack.check("down", 0);
}

#[test]
fn hooks_run_around_every_start_in_the_environment_of_the_process() {
    let stack = Stack::new(
        "# @web pre-start='echo preparing $PS; echo pre $PORT >>order' post-stop='echo post >>order'\n\
         web: echo main >>order; exec sleep 1000\n",
    );
    stack.check("up -d --wait", 0);
    stack.file("order", "main");
    let log = stack.check("logs web --time off", 0);
    assert!(log.contains("web    | preparing web\n"), "{log}");
    stack.check("restart web", 0);
    stack.file("order", "main\npost\npre 5000\nmain\n");
    stack.check("kill web", 0);
    stack.check("wait web --for exit", 0);
    stack.check("start web", 0);
    let twice = "main\npost\npre 5000\nmain\n";
    stack.file("order", &format!("pre 5000\n{twice}post\npre 5000\nmain\n"));
    assert_eq!(stack.field("web", "restarts"), 2, "hooks are no starts");
    stack.check("down", 0);
    assert!(stack.file("order", "main").ends_with("main\npost\n"), "also at the end");
}

#[test]
fn a_pre_start_that_fails_is_a_start_that_failed() {
    let stack = Stack::new("# @web pre-start='echo no disk; exit 3'\nweb: touch began; exec sleep 1000\n");
    let err = stack.check("up -d --wait", 1);
    assert!(err.contains("web failed") && err.contains("    no disk") && err.contains("exit code 3"), "{err}");
    stack.write(
        "Procfile",
        "# @web pre-start='echo no disk; exit 3'\nweb: touch began; exec sleep 1000\nb: exec sleep 1000\n",
    );
    stack.check("up -d", 0);
    let err = stack.check("start web", 1);
    assert!(err.contains("web  pre-start: exit status 3: no disk"), "{err}");
    // With a policy it is tried again.
    let text = "# @web restart=on-failure pre-start='echo try >>tries; exit 3'\nweb: touch began; exec sleep 1000\nb: exec sleep 1000\n";
    stack.write("Procfile", text);
    stack.check("reload", 1);
    stack.file("tries", "try\ntry\n");
    // One that hangs is killed when its time is over.
    let text = "# @web hook-timeout=200ms pre-start='sleep 1000 & echo $! >child; wait'\nweb: touch began\nb: exec sleep 1000\n";
    stack.write("Procfile", text);
    let (_, _, err) = stack.run("reload");
    assert!(err.contains("pre-start: not done within 200ms"), "{err}");
    assert!(!is_alive(stack.file("child", "\n").trim()));
    assert!(!stack.dir.path().join("began").exists());
    stack.check("down", 0);
}

#[test]
fn a_hook_ends_with_its_process() {
    let stack = Stack::new(
        "# @web pre-start='sleep 1000 & echo $! >child; wait'\nweb: exec sleep 1000\n\
         # @late post-stop='echo cleaning; sleep 1000'\nlate: exec sleep 1000\n",
    );
    stack.check("up -d", 0);
    let child = stack.file("child", "\n");
    assert_eq!(stack.field("web", "state"), "starting");
    stack.check("stop web", 0);
    assert!(!is_alive(child.trim()), "all of it was asked to end");
    assert_eq!(stack.field("web", "state"), "exited");
    // Nobody waits for a post-stop who wants everything to be killed.
    stack.check("stop late --no-wait", 0);
    let start = Instant::now();
    while !stack.check("logs late", 0).contains("cleaning") {
        assert!(start.elapsed() < PATIENCE);
    }
    assert_eq!(stack.field("late", "state"), "stopping");
    stack.check("down --force", 0);
}
