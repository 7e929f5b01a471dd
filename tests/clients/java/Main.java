import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Lease;
import io.etcd.jetcd.Lock;
import io.etcd.jetcd.Maintenance;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.common.exception.CompactedException;
import io.etcd.jetcd.election.LeaderKey;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.CompactOption;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** Drives a cluster with jetcd. Arguments: endpoints, separated by commas. */
public class Main {
    interface Step {
        void run(Client client) throws Exception;
    }

    static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    /** Waits for an answer, but not for ever. */
    static <T> T get(CompletableFuture<T> answer) throws Exception {
        return answer.get(20, TimeUnit.SECONDS);
    }

    static void check(boolean holds, Object told) {
        if (!holds) {
            throw new AssertionError(told);
        }
    }

    /** The error that has to be the answer, as text. */
    static String refused(CompletableFuture<?> answer) throws Exception {
        try {
            throw new AssertionError("it was not refused: " + get(answer));
        } catch (ExecutionException error) {
            return String.valueOf(error.getCause());
        }
    }

    static String[] endpoints;

    public static void main(String[] arguments) throws Exception {
        endpoints = Arrays.stream(arguments[0].split(",")).map(at -> "http://" + at).toArray(String[]::new);
        List<String> names = List.of("kv", "txn", "watch", "lease", "lock", "elect", "members", "status", "snapshot");
        List<Step> steps = List.of(Main::kv, Main::txn, Main::watch, Main::lease, Main::lock, Main::elect, Main::members,
            Main::status, Main::snapshot);
        try (Client client = Client.builder().endpoints(endpoints).build()) {
            for (int at = 0; at < names.size(); at++) {
                steps.get(at).run(client);
                System.out.println("ok " + names.get(at));
            }
        }
        System.exit(0);
    }

    static void kv(Client client) throws Exception {
        KV kv = client.getKVClient();
        long first = get(kv.put(bytes("kv/a"), bytes("1"))).getHeader().getRevision();
        get(kv.put(bytes("kv/b"), bytes("2")));
        var replaced = get(kv.put(bytes("kv/a"), bytes("3"), PutOption.builder().withPrevKV().build()));
        check(replaced.getPrevKv().getValue().equals(bytes("1")), replaced);
        var sorted = GetOption.builder().isPrefix(true).withSortField(GetOption.SortTarget.MOD)
            .withSortOrder(GetOption.SortOrder.DESCEND).build();
        var all = get(kv.get(bytes("kv/"), sorted));
        check(all.getCount() == 2 && all.getKvs().get(0).getKey().equals(bytes("kv/a")), all);
        var old = get(kv.get(bytes("kv/a"), GetOption.builder().withRevision(first).build()));
        check(old.getKvs().get(0).getValue().equals(bytes("1")), old);
        var deleted = get(kv.delete(bytes("kv/"), DeleteOption.builder().isPrefix(true).withPrevKV(true).build()));
        check(deleted.getDeleted() == 2 && deleted.getPrevKvs().size() == 2, deleted);
        check(refused(kv.put(bytes(""), bytes("x"))).contains("key is not provided"), "an empty key");
    }

    static void txn(Client client) throws Exception {
        KV kv = client.getKVClient();
        get(kv.put(bytes("txn/a"), bytes("1")));
        var done = get(kv.txn()
            .If(new Cmp(bytes("txn/a"), Cmp.Op.EQUAL, CmpTarget.value(bytes("1"))),
                new Cmp(bytes("txn/none"), Cmp.Op.EQUAL, CmpTarget.createRevision(0)))
            .Then(Op.put(bytes("txn/a"), bytes("2"), PutOption.DEFAULT),
                Op.txn(new Cmp[0], new Op[] {Op.get(bytes("txn/a"), GetOption.DEFAULT)}, new Op[0]))
            .Else(Op.delete(bytes("txn/a"), DeleteOption.DEFAULT))
            .commit());
        var nested = done.getTxnResponses().get(0).getGetResponses().get(0);
        check(done.isSucceeded() && nested.getKvs().get(0).getValue().equals(bytes("2")), done);
        var failed = get(kv.txn().If(new Cmp(bytes("txn/a"), Cmp.Op.GREATER, CmpTarget.version(7)))
            .Else(Op.delete(bytes("txn/a"), DeleteOption.DEFAULT)).commit());
        check(!failed.isSucceeded() && failed.getDeleteResponses().get(0).getDeleted() == 1, failed);
    }

    static void watch(Client client) throws Exception {
        KV kv = client.getKVClient();
        Watch watch = client.getWatchClient();
        long first = get(kv.put(bytes("watch/a"), bytes("1"))).getHeader().getRevision();
        BlockingQueue<WatchEvent> events = new LinkedBlockingQueue<>();
        var options = WatchOption.builder().isPrefix(true).withRevision(first).withPrevKV(true).withRequireLeader(true)
            .build();
        try (var watcher = watch.watch(bytes("watch/"), options, response -> events.addAll(response.getEvents()))) {
            get(kv.put(bytes("watch/a"), bytes("2")));
            get(kv.delete(bytes("watch/a")));
            for (String expected : List.of("PUT 1 ", "PUT 2 1", "DELETE  2")) {
                WatchEvent event = events.poll(20, TimeUnit.SECONDS);
                String before = event.getPrevKV() == null ? "" : event.getPrevKV().getValue().toString();
                String seen = event.getEventType() + " " + event.getKeyValue().getValue() + " " + before;
                check(seen.equals(expected), seen);
            }
        }
        get(kv.put(bytes("watch/c"), bytes("1")));
        long last = get(kv.put(bytes("watch/c"), bytes("2"))).getHeader().getRevision();
        get(kv.compact(last, CompactOption.builder().withCompactPhysical(true).build()));
        BlockingQueue<Throwable> errors = new LinkedBlockingQueue<>();
        var below = WatchOption.builder().withRevision(last - 1).build();
        try (var watcher = watch.watch(bytes("watch/c"), below, response -> { }, errors::add)) {
            Throwable error = errors.poll(20, TimeUnit.SECONDS);
            check(error instanceof CompactedException compacted && compacted.getCompactedRevision() == last, error);
        }
    }

    static void lease(Client client) throws Exception {
        KV kv = client.getKVClient();
        Lease lease = client.getLeaseClient();
        long id = get(lease.grant(30)).getID();
        get(kv.put(bytes("lease/a"), bytes("x"), PutOption.builder().withLeaseId(id).build()));
        check(get(lease.keepAliveOnce(id)).getTTL() == 30, "renewed");
        BlockingQueue<Long> renewed = new LinkedBlockingQueue<>();
        var observer = new io.grpc.stub.StreamObserver<io.etcd.jetcd.lease.LeaseKeepAliveResponse>() {
            public void onNext(io.etcd.jetcd.lease.LeaseKeepAliveResponse response) {
                renewed.add(response.getTTL());
            }

            public void onError(Throwable error) { }

            public void onCompleted() { }
        };
        try (var keeper = lease.keepAlive(id, observer)) {
            check(Long.valueOf(30).equals(renewed.poll(20, TimeUnit.SECONDS)), "kept alive");
        }
        var shown = get(lease.timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
        check(shown.getGrantedTTL() == 30 && shown.getKeys().get(0).equals(bytes("lease/a")), shown);
        get(lease.revoke(id));
        check(get(kv.get(bytes("lease/a"))).getCount() == 0, "the key outlived its lease");
        check(refused(lease.revoke(id)).contains("requested lease not found"), "revoked twice");
    }

    static void untilQueued(Client client, String prefix, long count) throws Exception {
        var counting = GetOption.builder().isPrefix(true).withCountOnly(true).build();
        while (get(client.getKVClient().get(bytes(prefix), counting)).getCount() != count) {
            Thread.sleep(10);
        }
    }

    /** By the lock service. */
    static void lock(Client client) throws Exception {
        Lock lock = client.getLockClient();
        Lease lease = client.getLeaseClient();
        long one = get(lease.grant(30)).getID();
        long two = get(lease.grant(30)).getID();
        long three = get(lease.grant(30)).getID();
        ByteSequence held = get(lock.lock(bytes("lock"), one)).getKey();
        check(held.equals(bytes("lock/" + Long.toHexString(one))), held);
        check(get(lock.lock(bytes("lock"), one)).getKey().equals(held), "taken twice");
        var second = lock.lock(bytes("lock"), two);
        untilQueued(client, "lock/", 2);
        var third = lock.lock(bytes("lock"), three);
        untilQueued(client, "lock/", 3);
        // Its session ends in the queue.
        get(lease.revoke(two));
        get(lock.unlock(held));
        check(refused(second).contains("mutex: session is expired"), "a lock for a session that is over");
        get(lock.unlock(get(third).getKey()));
        check(refused(lock.lock(bytes("lock"), two)).contains("requested lease not found"), "a lease that is gone");
    }

    /** By the election service. */
    static void elect(Client client) throws Exception {
        Election election = client.getElectionClient();
        Lease lease = client.getLeaseClient();
        ByteSequence name = bytes("elect");
        check(refused(election.leader(name)).contains("NoLeaderException"), "a leader before any");
        BlockingQueue<String> told = new LinkedBlockingQueue<>();
        election.observe(name, new Election.Listener() {
            public void onNext(LeaderResponse response) {
                told.add(response.getKv().getValue().toString());
            }

            public void onError(Throwable error) {
                told.add(error.toString());
            }

            public void onCompleted() {
                told.add("the end");
            }
        });
        LeaderKey first = get(election.campaign(name, get(lease.grant(30)).getID(), bytes("one"))).getLeader();
        check("one".equals(told.poll(20, TimeUnit.SECONDS)), "the first leader");
        var standing = election.campaign(name, get(lease.grant(30)).getID(), bytes("two"));
        untilQueued(client, "elect/", 2);
        get(election.proclaim(first, bytes("uno")));
        check("uno".equals(told.poll(20, TimeUnit.SECONDS)), "what it proclaims");
        check(get(election.leader(name)).getKv().getValue().equals(bytes("uno")), "the leader");
        get(election.resign(first));
        get(standing);
        check("two".equals(told.poll(20, TimeUnit.SECONDS)), "the second leader");
        check(refused(election.proclaim(first, bytes("x"))).contains("NotLeaderException"), "proclaimed after resigning");
    }

    static void members(Client client) throws Exception {
        var members = get(client.getClusterClient().listMember()).getMembers();
        check(members.size() == endpoints.length, members);
        check(members.stream().allMatch(member -> !member.getName().isEmpty() && !member.getClientURIs().isEmpty()), members);
    }

    static void status(Client client) throws Exception {
        Maintenance maintenance = client.getMaintenanceClient();
        for (String endpoint : endpoints) {
            var status = get(maintenance.statusMember(endpoint));
            check(!status.getVersion().isEmpty() && status.getLeader() != 0 && status.getDbSize() > 0, status);
            get(maintenance.hashKV(endpoint, 0));
            get(maintenance.defragmentMember(endpoint));
        }
        check(get(maintenance.listAlarms()).getAlarms().isEmpty(), "alarms");
    }

    static void snapshot(Client client) throws Exception {
        var image = new ByteArrayOutputStream();
        long bytes = get(client.getMaintenanceClient().snapshot(image));
        byte[] all = image.toByteArray();
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(Arrays.copyOf(all, all.length - 32));
        check(bytes == all.length, bytes);
        check(Arrays.equals(digest, Arrays.copyOfRange(all, all.length - 32, all.length)), all.length);
    }
}
