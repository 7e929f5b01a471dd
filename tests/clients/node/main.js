// Drives a cluster with the etcd3 package of npm. Arguments: endpoints, separated by commas.
'use strict';

const assert = require('assert');
const { createHash } = require('crypto');
const { Etcd3, EtcdLockFailedError } = require('etcd3');

const event = (emitter, name) => new Promise(resolve => emitter.once(name, resolve));

async function kv(client) {
  const first = await client.put('kv/a').value('1');
  await client.put('kv/b').value('2');
  const replaced = await client.put('kv/a').value('3').getPrevious();
  assert.strictEqual(replaced.value.toString(), '1');
  assert.strictEqual(await client.get('kv/a'), '3');
  assert.strictEqual(await client.get('kv/a').revision(first.header.revision), '1');
  assert.strictEqual(await client.get('kv/none'), null);
  assert.deepStrictEqual(await client.getAll().prefix('kv/').sort('Key', 'Descend').strings(), { 'kv/b': '2', 'kv/a': '3' });
  assert.deepStrictEqual(await client.getAll().prefix('kv/').limit(1).keys(), ['kv/a']);
  assert.strictEqual(await client.getAll().prefix('kv/').count(), 2);
  assert.strictEqual(await client.namespace('kv/').get('b').number(), 2);
  assert.strictEqual((await client.delete().prefix('kv/')).deleted, '2');
}

async function txn(client) {
  await client.put('txn/a').value('1');
  const done = await client
    .if('txn/a', 'Value', '==', '1')
    .and('txn/none', 'Create', '==', 0)
    .then(client.put('txn/a').value('2'), client.get('txn/a'))
    .else(client.delete().key('txn/a'))
    .commit();
  assert.ok(done.succeeded);
  assert.strictEqual(done.responses[1].response_range.kvs[0].value.toString(), '2');
  const failed = await client.if('txn/a', 'Version', '>', 7).then().else(client.delete().key('txn/a')).commit();
  assert.ok(!failed.succeeded);
  assert.strictEqual(failed.responses[0].response_delete_range.deleted, '1');
  await client.put('txn/counter').value('0');
  const add = () =>
    client.stm().transact(async tx => {
      await tx.put('txn/counter').value(Number(await tx.get('txn/counter').string()) + 1);
    });
  await Promise.all([add(), add(), add()]);
  assert.strictEqual(await client.get('txn/counter').number(), 3);
}

async function watch(client) {
  const first = await client.put('watch/a').value('1');
  const watcher = await client.watch().prefix('watch/').startRevision(first.header.revision).withPreviousKV().create();
  const seen = [];
  const whole = new Promise(resolve =>
    watcher.on('data', data => {
      for (const change of data.events) {
        const before = change.prev_kv ? change.prev_kv.value.toString() : '-';
        seen.push(`${change.type} ${change.kv.key}=${change.kv.value} before ${before}`);
      }
      if (seen.length >= 3) {
        resolve();
      }
    }),
  );
  await client.put('watch/a').value('2');
  await client.delete().key('watch/a');
  await whole;
  assert.deepStrictEqual(seen, ['Put watch/a=1 before -', 'Put watch/a=2 before 1', 'Delete watch/a= before 2']);
  await watcher.cancel();
  const one = await client.watch().key('watch/b').create();
  const put = event(one, 'put');
  await client.put('watch/b').value('x');
  assert.strictEqual((await put).value.toString(), 'x');
  const deleted = event(one, 'delete');
  await client.delete().key('watch/b');
  assert.strictEqual((await deleted).key.toString(), 'watch/b');
  await one.cancel();
}

async function lease(client) {
  const granted = client.lease(30);
  await granted.put('lease/a').value('x');
  const id = await granted.grant();
  await granted.keepaliveOnce();
  assert.strictEqual((await client.get('lease/a').exec()).kvs[0].lease, id);
  const shown = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  assert.strictEqual(shown.keys[0].toString(), 'lease/a');
  assert.ok(!granted.revoked());
  await granted.revoke();
  assert.strictEqual(await client.get('lease/a'), null);
  await assert.rejects(Promise.resolve(client.put('lease/a').value('x').lease(id)));
  await assert.rejects(client.leaseClient.leaseRevoke({ ID: id }));
}

async function lock(client) {
  const [first, second] = [client.lock('lock').ttl(20), client.lock('lock').ttl(20)];
  await first.acquire();
  await assert.rejects(second.acquire(), EtcdLockFailedError);
  await first.release();
  let ran = false;
  await client.lock('lock').do(async () => {
    ran = true;
    await assert.rejects(client.lock('lock').acquire(), EtcdLockFailedError);
  });
  assert.ok(ran);
  await second.acquire();
  await second.release();
}

async function elect(client) {
  const [first, second] = [client.election('elect', 20), client.election('elect', 20)];
  const campaign = first.campaign('one');
  await campaign.wait();
  const observer = await second.observe();
  assert.strictEqual(observer.leader(), 'one');
  const changed = event(observer, 'change');
  await campaign.proclaim('uno');
  assert.strictEqual(await changed, 'uno');
  const other = second.campaign('two');
  const elected = other.wait();
  await other.getCampaignKey();
  const led = new Promise(resolve => observer.on('change', leader => leader === 'two' && resolve()));
  await campaign.resign();
  await elected;
  await led;
  await other.resign();
  await observer.cancel();
}

async function members(client, count) {
  const list = await client.cluster.memberList({ linearizable: true });
  assert.strictEqual(list.members.length, count);
  assert.ok(list.members.every(member => member.name && member.peerURLs.length && member.clientURLs.length));
}

async function status(client) {
  const told = await client.maintenance.status();
  assert.ok(told.version && told.leader !== '0' && Number(told.dbSize) > 0);
  assert.deepStrictEqual((await client.maintenance.alarm({ action: 'Get' })).alarms, []);
  await client.maintenance.defragment();
  assert.ok((await client.maintenance.hash()).hash);
}

async function snapshot(client) {
  const stream = await client.maintenance.snapshot();
  const chunks = [];
  stream.on('data', chunk => chunks.push(chunk.blob));
  await event(stream, 'end');
  const image = Buffer.concat(chunks);
  const digest = createHash('sha256').update(image.subarray(0, -32)).digest();
  assert.ok(digest.equals(image.subarray(-32)), `${image.length} bytes`);
}

async function main() {
  const endpoints = process.argv[2].split(',');
  const client = new Etcd3({ hosts: endpoints });
  const steps = { kv, txn, watch, lease, lock, elect, members, status, snapshot };
  for (const [name, step] of Object.entries(steps)) {
    await step(client, endpoints.length);
    console.log('ok', name);
  }
  client.close();
}

// Whatever is left over must not keep the process.
main().then(
  () => process.exit(0),
  error => {
    console.error(error);
    process.exit(1);
  },
);
