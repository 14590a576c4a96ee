import torch, time, sys, os, json
import triton
from miras.engine import fused
from miras.architectures import MLP
from miras.biases import Huber, L2
from miras.kernels import mlp, mlp_bias
dev="cuda"; torch.backends.cuda.matmul.allow_tf32=False
print(torch.__version__, triton.__version__, torch.cuda.get_device_name())
def problem(b,N,C,I,O,F,slot,bound,gate,seed=0,lr=.3):
    g=torch.Generator(dev).manual_seed(seed); r=lambda *s: torch.randn(*s,generator=g,dtype=torch.float64,device=dev)
    J=2 if slot else 1; T=N*C
    nk=lambda t:t/t.norm(dim=-1,keepdim=True)
    ld=torch.nn.functional.logsigmoid(r(b,N,C)+4); lm=torch.nn.functional.logsigmoid(r(b,N,C)+1)
    low=torch.ones(C,C,dtype=torch.bool,device=dev).tril(-1)
    seg=lambda x: torch.exp(torch.where(low,x.unsqueeze(-1),0.).cumsum(-2)).tril()
    A=seg(ld); carry=ld.cumsum(-1).exp(); E=seg(lm); m=lm.cumsum(-1).exp()
    if slot:
        pairs=A@E; slots=(A@m.unsqueeze(-1))
        mix=torch.stack([torch.stack([carry[...,-1],-slots[...,-1,0]],-1),torch.stack([0*carry[...,-1],m[...,-1]],-1)],-2)
        into=torch.stack([-pairs[...,-1,:],E[...,-1,:]],-2)
    else: pairs=A; slots=None; mix=carry[...,-1:,None]; into=-pairs[...,-1:,:]
    t=[nk(r(b,T,I)), nk(r(b,T,I)), r(b,T,O), r(b,T).sigmoid()*lr, r(b,T).exp()*20 if bound else None, carry, pairs, slots, mix, into, r(b,J,I,F)/I**.5, r(b,J,F,O)/F**.5]
    if slot: t[10][:,1]*=.01; t[11][:,1]*=.01
    if gate: t.append(r(b,T,1 if gate==1 else O).exp()*.3)
    return t
def go(f,t,dts,seed=5):
    t=[None if x is None else x.to(d).requires_grad_() for x,d in zip(t,dts)]
    o=f(*t); g=torch.Generator(dev).manual_seed(seed)
    up=[torch.randn(x.shape,generator=g,dtype=torch.float64,device=dev).to(x.dtype)*(1 if i==0 else .3) for i,x in enumerate(o)]
    gr=torch.autograd.grad(o,[x for x in t if x is not None],up)
    return [x.detach().double() for x in o],[x.double() for x in gr]
names="q k v lr inverse carry pairs slot mix into w1 w2 gate".split()
def fns(C,F,I,bound,gate,act,norm,res,tile=64,group=0):
    bias=Huber() if gate else L2(half=True)
    r=fused.Recipe(MLP(activation=act,norm=norm,residual=res,expansion=F//I),bias,C)
    rk=mlp.Recipe(C,act,norm,res,1e-6,fused.LIMIT,mlp_bias.huber if gate else mlp_bias.l2, mlp_bias.huber_vjp if gate else mlp_bias.l2_vjp,(1.0,),tile,group)
    return (lambda *a: fused._Chunks.apply(r,*a)),(lambda *a: mlp.Chunks.apply(rk,*a))
def check(b,N,C,I,O,F,slot,bound,gate,act,norm,res,tile,group,dt,lr=.02):
    t=problem(b,N,C,I,O,F,slot,bound,gate,lr=lr)
    if dt!=torch.float32: t=[x.to(dt).double() if i<3 else x for i,x in enumerate(t)]
    fr,fk=fns(C,F,I,bound,gate,act,norm,res,tile,group)
    ref=go(fr,t,[torch.float64]*13)
    s=time.time(); dts=[dt]*3+[torch.float32]*10
    got=go(fk,t,dts); torch.cuda.synchronize(); s=time.time()-s
    again=go(fk,t,dts)
    same=all(torch.equal(a,b) for a,b in zip(got[0]+got[1],again[0]+again[1]))
    e=lambda a,b:((a-b).norm()/b.norm()).item()
    live=[n for n,x in zip(names,t) if x is not None]
    print((b,N,C,I,F,slot,bound,gate,act,norm,tile,str(dt)[6:]), "out",*("%.0e"%e(a,b) for a,b in zip(got[0],ref[0]))," ".join("%s %.0e"%(n,e(a,b)) for n,a,b in zip(live,got[1],ref[1])), "same",same,"%.1fs"%s,flush=True)
def bench(b,N,C,I,F,slot,bound,act="gelu",dt=torch.bfloat16,tile=64,group=0):
    t=problem(b,N,C,I,I,F,slot,bound,0,lr=.001)
    _,f=fns(C,F,I,bound,0,act,True,True,tile,group)
    t=[None if x is None else x.to(dt if i<3 else torch.float32).requires_grad_() for i,x in enumerate(t)]
    live=[x for x in t if x is not None]
    torch.cuda.reset_peak_memory_stats(); base=torch.cuda.memory_allocated()
    o=f(*t); up=[torch.randn_like(x) for x in o]
    def fb():
        o=f(*t); torch.autograd.grad(o,live,up)
    fb(); torch.cuda.synchronize(); mem=(torch.cuda.max_memory_allocated()-base)/2**30
    with torch.no_grad(): tf=triton.testing.do_bench(lambda: f(*t),warmup=20,rep=100,return_mode="median")
    tb=triton.testing.do_bench(fb,warmup=20,rep=150,return_mode="median")
    print(f"b={b} T={N*C} C={C} I={I} F={F} slot={slot} bound={bound} {act} tile={tile}: fwd {tf:.3f} ms ({tf/N*1e3:.1f} us/chunk) fwd+bwd {tb:.3f} ms mem {mem:.2f} GiB",flush=True)
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        fb(); torch.cuda.synchronize()
    for e in sorted(p.key_averages(),key=lambda e:-e.self_device_time_total)[:9]: print("   ",e.key[:60],e.count,f"{e.self_device_time_total/1e3:.3f} ms")
