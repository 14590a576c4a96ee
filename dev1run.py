from dev1 import *
check(2,3,64,64,64,256,True,False,0,"gelu",True,True,64,2,torch.bfloat16)
check(2,3,64,64,64,256,True,True,1,"gelu",True,True,64,2,torch.bfloat16)
bench(64,64,64,64,256,True,False)
bench(16,64,64,64,256,True,False)
bench(64,64,64,64,256,True,True)
check(2,3,16,16,16,32,True,True,1,"gelu",True,True,16,2,torch.float32)
check(40,8,64,64,64,256,True,False,0,"silu",True,True,64,4,torch.bfloat16)
